"""Rounds of a process: often while it serves, rarely while nothing is open, and always promised."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from gatewayd.proxy import sweeper as module
from gatewayd.proxy.sweeper import Open, Sweeper


class Timer:
    def __init__(self, at: float, call: Callable[[], None]) -> None:
        self.at = at
        self.call = call
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Clock:
    """A loop whose time passes when it is told to."""

    def __init__(self, now: float) -> None:
        self.now = now
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def call_at(self, at: float, call: Callable[[], None]) -> Timer:
        self.timers.append(Timer(at, call))
        return self.timers[-1]

    def call_later(self, delay: float, call: Callable[[], None]) -> Timer:
        return self.call_at(self.now + delay, call)

    def pending(self) -> list[Timer]:
        return [timer for timer in self.timers if not timer.cancelled]

    def fire(self, now: float) -> None:
        """The one timer, whenever it was to be."""
        (timer,) = self.pending()
        self.timers.remove(timer)
        self.now = now
        timer.call()

    def run_until(self, end: float) -> int:
        """How many times it woke."""
        woken = 0
        while due := [timer for timer in self.pending() if timer.at <= end]:
            timer = min(due, key=lambda timer: timer.at)
            self.timers.remove(timer)
            self.now = max(self.now, timer.at)
            timer.call()
            woken += 1
        self.now = end
        return woken


class Forward:
    def __init__(self, rest: float = 0.0) -> None:
        self.rest = rest
        self.sweep_at = 0
        self.swept: list[float] = []
        self.ended = False

    def sweep(self, now: float) -> float:
        self.swept.append(now)
        return now + self.rest if self.rest else 0.0

    def end(self, reply: object) -> None:
        self.ended = True


class Site:
    def __init__(self, now: float = 100.25) -> None:
        self.clock = Clock(now)
        self.open = Open.CLIENTS
        self.slow: list[float] = []
        self.reports: list[float] = []
        self.promises: list[float] = []  # by when the next round will have come
        loop: Any = self.clock
        self.sweeper = Sweeper(loop, self._slow)
        self.sweeper.start(lambda: self.reports.append(self.clock.now), self._promise)

    def _slow(self, now: float) -> Open:
        self.slow.append(now)
        return self.open

    def _promise(self, within: float) -> None:
        self.promises.append(self.clock.now + within)

    def begin(self, forward: Any) -> None:
        self.sweeper.begin(forward)


@pytest.fixture(autouse=True)
def real_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SWEEP_S", 0.1)
    monkeypatch.setattr(module, "_SLOW_S", 1.0)


def test_while_clients_are_connected_there_is_a_round_at_every_whole_second() -> None:
    site = Site()
    assert site.clock.run_until(105.5) == 5
    assert site.slow == site.reports == [101.0, 102.0, 103.0, 104.0, 105.0]
    assert site.promises == [101.75, 102.5, 103.5, 104.5, 105.5, 106.5]


def test_without_clients_a_process_wakes_in_every_fourth_second_to_promise_the_next() -> None:
    site = Site()
    site.open = Open.NOTHING
    assert site.clock.run_until(114.5) == 4
    assert site.slow == site.reports == [101.0, 105.0]  # the second tells what ended behind it
    assert site.promises == [101.75, 105.5, 109.5, 113.5, 117.5]


def test_what_only_grows_old_is_looked_at_in_the_rounds_of_a_rest_until_it_is_gone() -> None:
    site = Site()
    site.open = Open.LEFTOVERS
    site.clock.run_until(106.0)
    assert site.sweeper.resting
    site.open = Open.NOTHING
    site.clock.run_until(118.0)
    assert site.slow == [101.0, 105.0, 109.0]
    assert site.promises[-1] == 121.5


def test_every_promise_is_renewed_in_time() -> None:
    site = Site()
    for open_ in (Open.CLIENTS, Open.LEFTOVERS, Open.NOTHING, Open.CLIENTS, Open.NOTHING):
        site.open = open_
        if site.sweeper.resting and open_ is Open.CLIENTS:
            site.sweeper.stir()
        for _ in range(9):
            (timer,) = site.clock.pending()
            assert timer.at <= site.promises[-1] - 0.4
            site.clock.run_until(timer.at)


def test_a_client_that_comes_in_a_rest_is_looked_at_at_once_and_every_second() -> None:
    site = Site()
    site.open = Open.NOTHING
    site.clock.run_until(106.3)
    assert site.sweeper.resting
    site.open = Open.CLIENTS
    site.sweeper.stir()
    assert not site.sweeper.resting
    assert len(site.clock.pending()) == 1
    site.clock.run_until(107.5)
    assert site.slow == [101.0, 105.0, 106.3, 107.0]
    assert site.reports == [101.0, 105.0, 107.0]  # control is not woken before
    assert site.promises[-1] == 108.5


def test_one_that_has_gone_again_is_told_before_the_next_rest_and_in_it() -> None:
    site = Site()
    site.open = Open.NOTHING
    site.clock.run_until(106.3)
    site.sweeper.stir()
    site.clock.run_until(115.5)
    assert site.reports == [101.0, 105.0, 107.0, 111.0]


def test_an_exchange_is_looked_at_ten_times_a_second_from_when_it_has_begun() -> None:
    site, forward = Site(), Forward()
    site.clock.run_until(101.32)
    site.begin(forward)
    assert len(site.clock.pending()) == 1
    site.clock.run_until(101.75)
    assert forward.swept == pytest.approx([101.4, 101.5, 101.6, 101.7])
    site.sweeper.active.clear()
    site.clock.run_until(101.9)
    assert site.clock.run_until(103.5) == 2  # whole seconds again
    assert site.slow == [101.0, 102.0, 103.0]


def test_one_that_need_not_be_looked_at_for_seconds_wakes_nobody_between() -> None:
    site, forward = Site(), Forward(rest=3.0)
    site.begin(forward)
    assert site.sweeper.running == 1
    site.clock.run_until(100.35)
    assert forward.swept == pytest.approx([100.3])
    assert site.clock.run_until(109.5) == 9  # whole seconds
    assert forward.swept[1:] == [103.0, 106.0, 109.0]
    assert site.sweeper.running == 1


def test_one_that_ends_before_that_is_forgotten() -> None:
    site, forward, other = Site(), Forward(rest=3.0), Forward(rest=3.0)
    site.begin(forward)
    site.begin(other)
    site.clock.run_until(101.5)
    site.sweeper.forget(forward)
    assert site.sweeper.running == 1
    site.clock.run_until(104.5)
    assert len(forward.swept) == 1
    assert len(other.swept) == 2


def test_one_that_the_look_at_another_ends_is_not_looked_at() -> None:
    site = Site()

    class Ends(Forward):
        def sweep(self, now: float) -> float:
            for forward in pair:
                if forward is not self and self.swept:
                    site.sweeper.active.discard(forward)
            return super().sweep(now)

    pair: list[Any] = [Ends(rest=3.0), Ends(rest=3.0)]
    for forward in pair:
        site.begin(forward)
    site.clock.run_until(103.5)
    assert sorted(len(forward.swept) for forward in pair) == [1, 2]
    assert site.sweeper.running == 1


def test_one_that_runs_into_a_bound_when_it_is_looked_at_is_not_held_any_more() -> None:
    site = Site()

    class Late(Forward):
        def sweep(self, now: float) -> float:
            again = super().sweep(now)
            if len(self.swept) == 2:
                site.sweeper.active.discard(late)
                return 0.0
            return again

    late: Any = Late(rest=2.0)
    site.begin(late)
    site.clock.run_until(104.5)
    assert late.swept == pytest.approx([100.3, 102.0])
    assert site.sweeper.running == 0


def test_one_that_begins_when_another_is_looked_at_brings_no_second_clock() -> None:
    """As the next request of a connection does whose first one has run into a bound."""
    site, next_one = Site(), Forward()

    class Late(Forward):
        def sweep(self, now: float) -> float:
            again = super().sweep(now)
            if len(self.swept) == 2:
                site.sweeper.active.discard(late)
                site.begin(next_one)
                return 0.0
            return again

    late: Any = Late(rest=2.0)
    site.begin(late)
    site.clock.run_until(102.05)
    assert len(late.swept) == 2
    assert len(site.clock.pending()) == 1
    site.sweeper.active.clear()
    site.clock.run_until(103.5)
    assert site.clock.run_until(109.5) == 6  # whole seconds


def test_one_that_cannot_even_be_ended_takes_nobody_elses_deadlines_away(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(Forward):
        def sweep(self, now: float) -> float:
            if self.swept:
                raise RuntimeError("no")
            return super().sweep(now)

        def end(self, reply: object) -> None:
            raise RuntimeError("no end either")

    site, forwards = Site(), [Forward(rest=2.0) for _ in range(20)]
    broken: Any = Broken(rest=2.0)
    for forward in [*forwards[:10], broken, *forwards[10:]]:
        site.begin(forward)
    site.clock.run_until(104.5)
    assert {len(forward.swept) for forward in forwards} == {3}
    assert site.sweeper.running == 20
    assert "no end either" in caplog.text


def test_a_round_that_fails_behind_a_rest_does_not_bring_the_next_rest() -> None:
    site, forward = Site(), Forward()
    site.open = Open.NOTHING
    site.clock.run_until(106.3)
    assert site.sweeper.resting

    def fails(now: float) -> Open:
        raise RuntimeError("no")

    site.sweeper._slow = fails
    site.sweeper.stir()
    site.begin(forward)
    site.clock.run_until(110.5)
    assert not site.sweeper.resting
    assert len(forward.swept) > 40


def test_nothing_rests_while_one_runs_that_need_not_be_looked_at_yet() -> None:
    site = Site()
    site.open = Open.NOTHING
    site.begin(Forward(rest=5.0))
    site.clock.run_until(109.5)
    assert not site.sweeper.resting


def test_nothing_rests_while_an_exchange_runs() -> None:
    site = Site()
    site.open = Open.NOTHING
    site.begin(Forward())
    site.clock.run_until(101.5)
    assert not site.sweeper.resting


def test_a_round_that_fails_is_promised_and_done_again(caplog: pytest.LogCaptureFixture) -> None:
    site = Site()

    def fails(now: float) -> Open:
        site.slow.append(now)
        raise RuntimeError("no")

    site.sweeper._slow = fails
    site.clock.run_until(102.5)
    assert site.slow == [101.0, 102.0]
    assert site.promises[-1] == 103.5
    assert caplog.text.count("what is done every second failed") == 2


def test_an_exchange_that_cannot_be_looked_at_ends_and_the_others_go_on() -> None:
    class Broken(Forward):
        def sweep(self, now: float) -> float:
            raise RuntimeError("no")

    site, broken, sound = Site(), Broken(), Forward()
    site.begin(broken)
    site.begin(sound)
    site.clock.run_until(100.35)
    assert broken.ended
    assert sound.swept


def test_a_timer_that_fires_a_millisecond_early_costs_no_second_wake_up() -> None:
    site = Site()
    site.clock.fire(100.999)
    assert site.slow == [100.999]
    assert [timer.at for timer in site.clock.pending()] == [102.0]


def test_after_a_stall_there_is_one_round() -> None:
    site = Site()
    site.clock.fire(160.4)
    assert [timer.at for timer in site.clock.pending()] == [161.0]


def test_once_closed_no_round_comes() -> None:
    site = Site()
    site.sweeper.close()
    site.begin(Forward())
    assert site.clock.pending() == []


async def test_it_runs_on_a_real_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SWEEP_S", 0.01)
    monkeypatch.setattr(module, "_SLOW_S", 0.02)
    loop, rounds, enough = asyncio.get_running_loop(), 0, asyncio.Event()

    def slow(now: float) -> Open:
        nonlocal rounds
        rounds += 1
        if rounds == 3:
            enough.set()
        return Open.CLIENTS

    sweeper = Sweeper(loop, slow)
    sweeper.start()
    async with asyncio.timeout(10):
        await enough.wait()
    sweeper.close()
