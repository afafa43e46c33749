"""A process that puts its alarm off lives, whatever else it does; one that does not is given up."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest
from waiting import stall, until

from gatewayd.control import watch as module
from gatewayd.control.watch import Watch
from gatewayd.net.alarm import Alarm


class Site:
    def __init__(self) -> None:
        self.given_up = asyncio.Event()
        self.times = 0
        self.watch = Watch(self._give_up)
        self.process = Alarm(os.dup(self.watch.fd))

    def _give_up(self) -> None:
        self.times += 1
        self.given_up.set()

    async def until_given_up(self) -> None:
        async with asyncio.timeout(20):
            await self.given_up.wait()

    async def given_up_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self.given_up.wait()
        except TimeoutError:
            return False
        return True


@pytest.fixture
async def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(module, "_LOOK_S", 0.05)
    site = Site()
    yield site
    site.process.close()
    site.watch.close()


async def test_who_is_silent_is_given_up_once_and_not_at_the_first_look(site: Site) -> None:
    loop = asyncio.get_running_loop()
    site.process.ring_in(0.05)
    began = loop.time()
    await site.until_given_up()
    assert loop.time() - began >= 0.05 + 3 * 0.05 - 0.002  # the loop counts in milliseconds
    assert not await site.given_up_within(0.2) or site.times == 1


async def test_who_was_late_is_not_and_is_heard_again(site: Site) -> None:
    site.process.ring_in(0.01)
    await until(lambda: site.process.rings)
    site.process.ring_in(60.0)
    assert not await site.given_up_within(0.3)
    site.process.ring_in(0.01)
    await site.until_given_up()


async def test_a_look_that_finds_a_sign_of_life_forgets_those_before(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    look = site.watch._look

    def counted() -> None:
        nonlocal looks
        looks += 1
        if looks == 2:  # it rang at the first
            site.process.ring_in(0.02)
        look()

    monkeypatch.setattr(site.watch, "_look", counted)
    site.process.ring_in(0.01)
    await site.until_given_up()
    assert looks == 5  # two, and then three more


async def test_a_stall_between_two_looks_is_nobodys_fault(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []
    look, loop = site.watch._look, asyncio.get_running_loop()

    def counted() -> None:
        looks.append(loop.time())
        look()
        if len(looks) == 2:
            stall(0.3)

    monkeypatch.setattr(site.watch, "_look", counted)
    site.process.ring_in(0.01)
    await site.until_given_up()
    assert len(looks) == 5  # the third was late, and is the first again


async def test_a_process_that_starts_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_S", 0.01)
    monkeypatch.setattr(module, "_START_S", 0.3)
    site = Site()
    assert not await site.given_up_within(0.25)
    await site.until_given_up()
    site.process.close()
    site.watch.close()


async def test_of_one_that_is_gone_nothing_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_S", 0.01)
    site = Site()
    site.process.ring_in(0.01)
    await until(lambda: site.process.rings)
    site.watch.close()
    assert not await site.given_up_within(0.2)
    site.process.close()
