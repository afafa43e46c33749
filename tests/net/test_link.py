"""Datagrams between two processes: in order, whole, bounded, and an end that is noticed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from waiting import PATIENCE_S

from gatewayd.net import link as link_module
from gatewayd.net.link import DATAGRAM_SIZE, FRAME_SIZE, Link, unpack


@dataclass
class End:
    link: Link = None  # type: ignore[assignment]
    frames: list[bytes] = field(default_factory=list)
    closed: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def heard(self, frame: bytes) -> None:
        self.frames.append(frame)
        self.news.set()

    def lost(self) -> None:
        self.closed += 1
        self.news.set()

    async def until(self, holds: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not holds():
                self.news.clear()
                await self.news.wait()


def end(sock: socket.socket) -> End:
    made = End()
    made.link = Link(sock, made.heard, made.lost, asyncio.get_running_loop())
    return made


@asynccontextmanager
async def ends() -> AsyncIterator[tuple[End, End]]:
    ours, theirs = Link.pair()
    one, other = end(ours), end(theirs)
    try:
        yield one, other
    finally:
        one.link.close()
        other.link.close()


async def test_frames_arrive_whole_and_in_order_both_ways() -> None:
    async with ends() as (one, other):
        sent = [b"%d" % i for i in range(1000)] + [b"x" * FRAME_SIZE]
        for frame in sent:
            one.link.send(frame)
        other.link.send(b"back")
        await other.until(lambda: len(other.frames) == len(sent))
        await one.until(lambda: one.frames)
        assert other.frames == sent
        assert one.frames == [b"back"]


async def test_frames_sent_from_within_a_frame() -> None:
    """As a worker does that finishes a late claim."""
    ours, theirs = Link.pair()
    asker = End()
    asker.link = Link(
        ours,
        lambda frame: (asker.heard(frame), asker.link.send(b"F" + frame))[0],
        asker.lost,
        asyncio.get_running_loop(),
    )
    bridge = end(theirs)
    for i in range(600):  # more than one turn of the loop takes
        bridge.link.send(b"%d" % i)
    await bridge.until(lambda: len(bridge.frames) == 600)
    assert bridge.frames == [b"F%d" % i for i in range(600)]
    asker.link.close()
    await bridge.until(lambda: bridge.closed)


async def test_the_end_is_told_once_after_what_was_sent_before_it() -> None:
    async with ends() as (one, other):
        for i in range(100):  # what the kernel takes at once
            one.link.send(b"%d" % i)
        one.link.close()
        await other.until(lambda: other.closed)
        assert len(other.frames) == 100
        assert other.closed == 1
        assert other.link.closed
        assert one.closed == 0  # a close of our own is no news
        other.link.send(b"into nothing")
        other.link.close()
        one.link.close()
        assert other.closed == 1


async def test_closing_from_within_a_frame() -> None:
    ours, theirs = Link.pair()
    one = end(ours)
    heard: list[bytes] = []

    def hear_one(frame: bytes) -> None:
        heard.append(frame)
        other.close()

    other = Link(theirs, hear_one, lambda: None, asyncio.get_running_loop())
    one.link.send(b"first")
    one.link.send(b"second")
    await one.until(lambda: one.closed)
    assert heard == [b"first"]
    one.link.close()


async def test_frames_of_one_turn_share_datagrams() -> None:
    ours, theirs = Link.pair()
    theirs.setblocking(False)
    one = end(ours)
    sent = [b"%d" % i for i in range(300)] + [b"x" * FRAME_SIZE] * 10
    for frame in sent:
        one.link.send(frame)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    datagrams = []
    with contextlib.suppress(BlockingIOError):
        while True:
            datagrams.append(theirs.recv(1 << 20))
    assert [frame for datagram in datagrams for frame in unpack(datagram)] == sent
    assert len(datagrams) == 2
    assert max(map(len, datagrams)) <= DATAGRAM_SIZE
    one.link.close()
    theirs.close()


async def test_a_peer_that_is_killed() -> None:
    """The other end lives in a process of its own."""
    ours, theirs = Link.pair()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "import sys, time; print(flush=True); sys.stdin.read()"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        pass_fds=(theirs.fileno(),),
    )
    theirs.close()
    one = end(ours)
    assert process.stdout is not None
    async with asyncio.timeout(30):
        await process.stdout.readline()
    one.link.send(b"hello")
    assert not one.closed
    os.kill(process.pid, signal.SIGKILL)
    await one.until(lambda: one.closed)
    async with asyncio.timeout(30):
        await process.wait()
    assert one.closed == 1


async def test_a_peer_that_reads_late_gets_everything() -> None:
    ours, theirs = Link.pair()
    one = end(ours)
    sent = [b"%d" % i for i in range(5000)]
    for frame in sent:
        one.link.send(frame)
    assert not one.link.closed
    assert "queued" in repr(one.link)
    other = end(theirs)
    await other.until(lambda: len(other.frames) == len(sent))
    assert other.frames == sent
    one.link.close()
    other.link.close()


async def test_a_peer_that_never_reads_costs_a_bounded_amount(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(link_module, "_MAX_QUEUED", 1000)
    ours, theirs = Link.pair()
    one = end(ours)
    for i in range(5000):
        one.link.send(b"%d" % i)
    assert one.link.closed
    assert one.closed == 1
    assert repr(one.link) == "<Link closed>"
    theirs.close()


async def test_a_peer_that_dies_while_frames_wait_for_it() -> None:
    ours, theirs = Link.pair()
    one = end(ours)
    for i in range(5000):
        one.link.send(b"%d" % i)
    theirs.close()
    await one.until(lambda: one.closed)
    assert one.closed == 1


async def test_many_links_leave_no_descriptor_behind() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        async with ends() as (one, other):
            one.link.send(b"x")
            await other.until(lambda other=other: other.frames)
    assert len(os.listdir("/proc/self/fd")) == before
