"""A change is on disk before it is answered, or it was not made."""

from __future__ import annotations

import asyncio
import errno
import random
import threading
from dataclasses import dataclass, field

import pytest
from plant import service

from gatewayd.control.keeper import Keeper, NotSavedError
from gatewayd.control.saved import Saved
from gatewayd.control.state import State


@dataclass
class Disk:
    """`full` refuses; `gate` holds a save until it is set."""

    saved: list[list[str]] = field(default_factory=list)
    full: bool = False
    gate: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    def save(self, saved: Saved) -> None:
        assert self.gate.wait(10)
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.saved.append([key.removeprefix("main/") for key in saved.services])


def add(state: State, name: str) -> None:
    new = service(name, origin="api")
    state.services[new.key] = new


@pytest.fixture
def disk() -> Disk:
    return Disk()


async def test_whoever_comes_meanwhile_shares_the_next_save(disk: Disk) -> None:
    state = State()
    keeper = Keeper(state, disk)
    disk.gate.clear()
    add(state, "a")
    first = asyncio.create_task(keeper.keep())
    for _ in range(5):
        await asyncio.sleep(0)
    others = []
    for name in "bcd":
        add(state, name)
        others.append(asyncio.create_task(keeper.keep()))
    disk.gate.set()
    await asyncio.gather(first, *others)
    assert disk.saved == [["a"], ["a", "b", "c", "d"]]


async def test_what_cannot_be_saved_is_undone(disk: Disk) -> None:
    state = State()
    keeper = Keeper(state, disk)
    add(state, "a")
    await keeper.keep()
    disk.full = True
    disk.gate.clear()
    add(state, "b")
    failing = asyncio.create_task(keeper.keep())
    for _ in range(5):
        await asyncio.sleep(0)
    add(state, "c")  # while the save fails: built on what is undone
    later = asyncio.create_task(keeper.keep())
    disk.gate.set()
    for task in (failing, later):
        with pytest.raises(NotSavedError, match="No space left on device; nothing was changed"):
            await task
    assert list(state.services) == ["main/a"]
    disk.full = False
    add(state, "d")
    await keeper.keep()
    assert disk.saved[-1] == ["a", "d"]


async def test_a_caller_that_leaves_takes_nobody_along(disk: Disk) -> None:
    state = State()
    keeper = Keeper(state, disk)
    disk.gate.clear()
    add(state, "a")
    leaving, staying = (asyncio.create_task(keeper.keep()) for _ in "ab")
    for _ in range(5):
        await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    disk.gate.set()
    await staying
    assert disk.saved == [["a"]]
    await keeper.aclose()


async def test_a_disk_that_is_full_now_and_then(disk: Disk) -> None:
    """Whatever was answered is saved, and nothing else."""
    state = State()
    keeper = Keeper(state, disk)
    kept: set[str] = set()
    chance = random.Random(5)  # noqa: S311

    async def client(n: int) -> None:
        for i in range(20):
            name = f"s{n}-{i}"
            disk.full = chance.random() < 0.3
            add(state, name)
            try:
                await keeper.keep()
                kept.add(f"main/{name}")
            except NotSavedError:
                await asyncio.sleep(0)

    await asyncio.gather(*(client(n) for n in range(10)))
    assert set(state.services) == kept
    disk.full = False
    await keeper.keep()
    assert {f"main/{name}" for name in disk.saved[-1]} == kept
