"""One wake-up for all that looks at something every second."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import pairwise

import pytest

from gatewayd.control.pulse import Pulse


class Clock:
    """The loop's time, as far as a pulse asks for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loop = asyncio.get_running_loop()
        self.ahead = 0.0
        really = self.loop.time
        monkeypatch.setattr(self.loop, "time", lambda: really() + self.ahead)


class Beats:
    def __init__(self) -> None:
        self.count = 0
        self.came = asyncio.Event()

    def __call__(self) -> None:
        self.count += 1
        self.came.set()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(20):
            while self.count < count:
                self.came.clear()
                await self.came.wait()


@pytest.fixture
async def pulse() -> Iterator[Pulse]:
    pulse = Pulse(1000.0)
    pulse.start()
    yield pulse
    pulse.stop()


async def test_it_beats_by_itself() -> None:
    pulse, beats = Pulse(0.01), Beats()
    pulse.each(beats)
    pulse.start()
    await beats.until(3)
    pulse.stop()


async def test_who_wakes_control_about_then_causes_the_beat(
    pulse: Pulse, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, beats = Clock(monkeypatch), Beats()
    pulse.each(beats)
    clock.ahead = 800.0
    pulse.awake()
    await asyncio.sleep(0)
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
    clock.ahead = 1900.0
    pulse.awake()
    await asyncio.sleep(0)
    assert beats.count == 2


async def test_when_nobody_reports_there_is_one_beat_in_two_periods() -> None:
    loop, pulse, beats = asyncio.get_running_loop(), Pulse(0.1), Beats()
    pulse.each(beats)
    began = loop.time()
    pulse.start()
    await beats.until(5)
    pulse.stop()
    assert loop.time() - began > 0.7  # the first after 0.11, the second 0.1 behind an even period


async def test_who_hurries_has_the_next_beat_in_one_period() -> None:
    loop, pulse, beats = asyncio.get_running_loop(), Pulse(0.2), Beats()
    times: list[float] = []
    pulse.each(beats)
    pulse.each(lambda: times.append(loop.time()))
    pulse.each(pulse.hurry)
    pulse.start()
    await beats.until(6)
    pulse.stop()
    gaps = [after - before for before, after in pairwise(times)]
    assert sorted(gaps)[2] < 0.36  # some may be late


async def test_the_beat_comes_to_the_report_that_is_too_early_for_it(
    pulse: Pulse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one wake-up follows the other for ever, a fraction of a second behind."""
    clock, beats = Clock(monkeypatch), Beats()
    pulse.each(beats)
    clock.ahead = 300.0
    pulse.awake()
    timer = pulse._timer
    assert timer is not None
    assert timer.when() == pytest.approx(clock.loop.time() + 1100.0, abs=60.0)
    clock.ahead = 500.0
    pulse.awake()  # who reports all the time does not put it off for ever
    assert pulse._timer is timer
    clock.ahead = 1300.0
    pulse.awake()
    await asyncio.sleep(0)
    assert beats.count == 1


async def test_what_fails_keeps_nobody_else_from_looking(
    pulse: Pulse, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock, beats = Clock(monkeypatch), Beats()
    pulse.each(lambda: [][1])
    pulse.each(beats)
    for ahead in (1000.0, 2000.0):
        clock.ahead = ahead
        pulse.awake()
        await asyncio.sleep(0)
    assert beats.count == 2
    assert caplog.text.count("IndexError") == 2


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
