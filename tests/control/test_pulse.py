"""One wake-up for all that looks at something every second."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator

import pytest

from gatewayd.control.pulse import Pulse


class Clock:
    """The loop's time, as far as a pulse asks for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loop = asyncio.get_running_loop()
        self.ahead = 0.0
        really = self.loop.time
        monkeypatch.setattr(self.loop, "time", lambda: really() + self.ahead)


async def reports(pulse: Pulse, clock: Clock, at: float) -> None:
    """A worker does, and what it causes has happened."""
    clock.ahead = at
    pulse.awake()
    await asyncio.sleep(0)


class Beats:
    """Counts them, and asks for the next one after so many periods."""

    def __init__(self, again: float = math.inf) -> None:
        self.again = again
        self.count = 0
        self.came = asyncio.Event()

    def __call__(self) -> float:
        self.count += 1
        self.came.set()
        return self.again

    async def until(self, count: int) -> None:
        async with asyncio.timeout(20):
            while self.count < count:
                self.came.clear()
                await self.came.wait()

    async def come_within(self, seconds: float) -> bool:
        self.came.clear()
        try:
            async with asyncio.timeout(seconds):
                await self.came.wait()
        except TimeoutError:
            return False
        return True


@pytest.fixture
async def pulse() -> Iterator[Pulse]:
    pulse = Pulse(1000.0)
    pulse.start()
    yield pulse
    pulse.stop()


async def test_who_asks_for_it_is_called_again_and_again() -> None:
    pulse, beats = Pulse(0.01), Beats(1.0)
    pulse.each(beats)
    pulse.start()
    await beats.until(5)
    pulse.stop()


async def test_when_nobody_asks_and_nobody_reports_there_is_no_beat() -> None:
    pulse, beats = Pulse(0.01), Beats()
    pulse.each(beats)
    pulse.start()
    await beats.until(1)
    assert not await beats.come_within(0.2)
    pulse.awake()
    await beats.until(2)
    pulse.stop()


async def test_the_first_who_wants_it_has_it() -> None:
    loop, pulse, beats = asyncio.get_running_loop(), Pulse(0.05), Beats(4.0)
    pulse.each(Beats(1000.0))
    pulse.each(beats)
    pulse.each(Beats())
    began = loop.time()
    pulse.start()
    await beats.until(3)
    pulse.stop()
    assert loop.time() - began >= 0.05 + 2 * 0.2 - 0.003  # the loop counts in milliseconds


async def test_who_wakes_control_about_then_causes_the_beat(
    pulse: Pulse, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, beats = Clock(monkeypatch), Beats()
    pulse.each(beats)
    await reports(pulse, clock, 800.0)
    assert beats.count == 0
    clock.ahead = 950.0
    pulse.awake()
    pulse.awake()  # another report of the same moment
    assert beats.count == 0  # not before what else is there has been read
    await asyncio.sleep(0)
    assert beats.count == 1
    pulse.awake()
    await asyncio.sleep(0)
    assert beats.count == 1
    await reports(pulse, clock, 1900.0)
    assert beats.count == 2


async def test_the_beat_comes_to_the_report_that_is_too_early_for_it(
    pulse: Pulse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one wake-up follows the other for ever, a fraction of a second behind."""
    clock, beats = Clock(monkeypatch), Beats()
    pulse.each(beats)
    await reports(pulse, clock, 1000.0)
    assert pulse._timer is None  # nobody has asked for one
    clock.ahead = 1300.0
    pulse.awake()
    timer = pulse._timer
    assert timer is not None
    assert timer.when() == pytest.approx(clock.loop.time() + 1100.0, abs=60.0)
    clock.ahead = 1500.0
    pulse.awake()  # who reports all the time does not put it off for ever
    assert pulse._timer is timer
    await reports(pulse, clock, 2300.0)
    assert beats.count == 2


async def test_a_beat_by_the_clock_is_not_followed_by_one_for_a_report_of_the_same_moment(
    pulse: Pulse, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, beats = Clock(monkeypatch), Beats()
    pulse.each(beats)
    clock.ahead = 1000.0
    pulse.awake()
    pulse._beat()
    await asyncio.sleep(0)
    assert beats.count == 1


async def test_what_fails_keeps_nobody_else_from_looking(
    pulse: Pulse, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock, beats = Clock(monkeypatch), Beats()
    pulse.each(lambda: [][1])
    pulse.each(beats)  # asks for none, but who failed is to be tried again
    for ahead in (1000.0, 2000.0):
        await reports(pulse, clock, ahead)
    assert beats.count == 2
    assert caplog.text.count("IndexError") == 2
    assert pulse._timer is not None
    assert pulse._timer.when() == pytest.approx(clock.loop.time() + 1000.0, abs=60.0)


async def test_when_it_is_stopped_nothing_beats(
    pulse: Pulse, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, beats = Clock(monkeypatch), Beats()
    pulse.each(beats)
    clock.ahead = 1000.0
    pulse.awake()
    pulse.stop()
    pulse.awake()
    await asyncio.sleep(0)
    assert beats.count == 0
