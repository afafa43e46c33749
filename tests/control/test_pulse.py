"""One wake-up for all that looks at something every second."""

from __future__ import annotations

import asyncio
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


class Beats:
    def __init__(self) -> None:
        self.count = 0
        self.came = asyncio.Event()

    def __call__(self) -> None:
        self.count += 1
        self.came.set()


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
    async with asyncio.timeout(20):
        while beats.count < 3:
            beats.came.clear()
            await beats.came.wait()
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
