"""Rounds of a process: often while it serves, rarely while nothing is open, and always promised."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from gatewayd.proxy import sweeper as module
from gatewayd.proxy.sweeper import Sweeper


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
    def __init__(self, sweep_at: float = 0.0) -> None:
        self.sweep_at = sweep_at
        self.swept: list[float] = []
        self.ended = False

    def sweep(self, now: float) -> None:
        self.swept.append(now)

    def end(self, reply: object) -> None:
        self.ended = True


class Site:
    def __init__(self, now: float = 100.25) -> None:
        self.clock = Clock(now)
        self.is_open = True
        self.slow: list[float] = []
        self.promises: list[float] = []
        loop: Any = self.clock
        self.sweeper = Sweeper(loop, self._slow)
        self.sweeper.start(self.promises.append)

    def _slow(self, now: float) -> bool:
        self.slow.append(now)
        return self.is_open

    def begin(self, forward: Any) -> None:
        self.sweeper.begin(forward)


@pytest.fixture(autouse=True)
def real_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SWEEP_S", 0.1)
    monkeypatch.setattr(module, "_SLOW_S", 1.0)


def test_while_connections_are_open_there_is_a_round_at_every_whole_second() -> None:
    site = Site()
    assert site.promises == [101.0]
    assert site.clock.run_until(105.5) == 5
    assert site.slow == [101.0, 102.0, 103.0, 104.0, 105.0]
    assert site.promises == [101.0, 102.0, 103.0, 104.0, 105.0, 106.0]


def test_while_nothing_is_open_a_process_wakes_in_every_other_second_to_promise_the_next() -> None:
    site = Site()
    site.is_open = False
    assert site.clock.run_until(109.5) == 5
    assert site.slow == [101.0, 102.0]  # the second tells what ended behind the first
    assert site.promises == [101.0, 102.0, 104.0, 106.0, 108.0, 110.0]


def test_what_opens_while_it_rests_is_looked_at_at_once_and_every_second() -> None:
    site = Site()
    site.is_open = False
    site.clock.run_until(103.3)
    assert site.sweeper.resting
    site.is_open = True
    site.sweeper.stir()
    assert not site.sweeper.resting
    assert len(site.clock.pending()) == 1
    site.clock.run_until(104.5)
    assert site.slow == [101.0, 102.0, 103.3, 104.0]
    assert site.promises[-1] == 105.0


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


def test_one_that_need_not_be_looked_at_yet_is_not() -> None:
    site, forward = Site(), Forward(sweep_at=101.95)
    site.begin(forward)
    site.clock.run_until(102.05)
    assert forward.swept == pytest.approx([102.0])


def test_nothing_rests_while_an_exchange_runs() -> None:
    site = Site()
    site.is_open = False
    site.begin(Forward())
    site.clock.run_until(101.5)
    assert not site.sweeper.resting


def test_a_round_that_fails_is_promised_and_done_again(caplog: pytest.LogCaptureFixture) -> None:
    site = Site()

    def fails(now: float) -> bool:
        site.slow.append(now)
        raise RuntimeError("no")

    site.sweeper._slow = fails
    site.clock.run_until(102.5)
    assert site.slow == [101.0, 102.0]
    assert site.promises[-1] == 103.0
    assert caplog.text.count("what is done every second failed") == 2


def test_an_exchange_that_cannot_be_looked_at_ends_and_the_others_go_on() -> None:
    class Broken(Forward):
        def sweep(self, now: float) -> None:
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

    def slow(now: float) -> bool:
        nonlocal rounds
        rounds += 1
        if rounds == 3:
            enough.set()
        return True

    sweeper = Sweeper(loop, slow)
    sweeper.start()
    async with asyncio.timeout(10):
        await enough.wait()
    sweeper.close()
