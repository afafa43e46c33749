"""Bytes that go from one socket to another in the kernel."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import struct
from collections.abc import AsyncIterator

import pytest
from waiting import until

from gatewayd.net.flow import Flow
from gatewayd.net.splice import Splice, Splices

MIB = 1 << 20


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)  # noqa: S311


class Owner:
    moved = 0
    ended = cut = False

    def splice_moved(self, size: int) -> None:
        self.moved += size

    def splice_ended(self) -> None:
        self.ended = True

    def splice_cut(self) -> None:
        self.cut = True


class Sockets:
    """A source (TCP) that `client` writes to, and a target (Unix) that `replica` reads from."""

    source: asyncio.Transport
    target: Flow

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.splices = Splices(self.loop)
        self.owner = Owner()
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.client = socket.create_connection(listener.getsockname())
            source, _ = listener.accept()
        target, self.replica = socket.socketpair()
        for sock in (self.client, self.replica, source, target):
            sock.setblocking(False)
        self.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.source, _ = await self.loop.connect_accepted_socket(asyncio.Protocol, source)
        self.source.pause_reading()
        _, self.target = await self.loop.create_connection(Flow, sock=target)

    def begin(self, size: int) -> Splice:
        splice = self.splices.open(self.source, self.target, size, self.owner)
        assert splice is not None
        splice.start()
        return splice

    def send(self, data: bytes) -> None:
        work = self.loop.sock_sendall(self.client, data)
        self._tasks.append(self.loop.create_task(work))

    async def stop_sending(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def receive(self, size: int) -> bytes:
        pieces = []
        async with asyncio.timeout(30):
            while size and (data := await self.loop.sock_recv(self.replica, min(size, 50_000))):
                pieces.append(data)
                size -= len(data)
        return b"".join(pieces)

    async def close(self) -> None:
        for splice in [*self.splices.running]:
            splice.close()
        await self.stop_sending()
        self.source.abort()
        self.target.transport.abort()
        for sock in (self.client, self.replica):  # the other ends have no descriptor left
            async with asyncio.timeout(30):
                with contextlib.suppress(OSError):
                    while sock.fileno() >= 0 and await self.loop.sock_recv(sock, MIB):
                        pass
            sock.close()


def pipes() -> set[str]:
    links = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the listing itself
            links.add(os.readlink(f"/proc/self/fd/{fd}"))
    return {link for link in links if link.startswith("pipe:")}


@pytest.fixture
async def sockets() -> AsyncIterator[Sockets]:
    before = pipes()
    sockets = Sockets()
    await sockets.open()
    yield sockets
    await sockets.close()
    assert pipes() == before


@pytest.mark.parametrize("size", [1, 4096, 300_000, 5 * MIB + 1])
async def test_all_of_it_arrives_and_no_byte_more(sockets: Sockets, size: int) -> None:
    data = noise(size)
    sockets.begin(size)
    sockets.send(data + b"next")
    assert await sockets.receive(size) == data
    assert sockets.owner.moved == size
    await until(lambda: sockets.owner.ended)
    assert not sockets.splices.running
    fd = sockets.source.get_extra_info("socket").fileno()
    with socket.socket(fileno=os.dup(fd)) as rest:
        await until(lambda: rest.recv(100, socket.MSG_PEEK) == b"next")


async def test_bytes_that_come_one_by_one_do_not_wait(sockets: Sockets) -> None:
    sockets.begin(200)
    for i in range(200):
        sockets.send(bytes([i]))
        assert await sockets.receive(1) == bytes([i])
    await until(lambda: sockets.owner.ended)


async def test_bytes_that_came_one_by_one_arrive_together(sockets: Sockets) -> None:
    """What is small is copied, so that it holds no page of the network's behind a slow reader."""
    data = noise(3000)
    for byte in data:
        await sockets.loop.sock_sendall(sockets.client, bytes([byte]))
    sockets.begin(len(data))
    assert await sockets.receive(len(data)) == data


async def test_a_target_that_is_slow_holds_the_source_back(sockets: Sockets) -> None:
    data = noise(30 * MIB)
    sockets.begin(len(data))
    sockets.send(data)
    await until(lambda: sockets.target.writing_paused)
    held = sockets.owner.moved
    assert held < MIB
    assert await sockets.receive(len(data)) == data
    await until(lambda: sockets.owner.ended)
    assert not sockets.target.writing_paused


@pytest.mark.parametrize(("how", "slow"), [("shutdown", False), ("reset", False), ("reset", True)])
async def test_a_source_that_leaves_is_noticed(sockets: Sockets, how: str, slow: bool) -> None:
    """Also while the target is slow, and more lies unread."""
    sockets.begin(30 * MIB)
    if slow:
        sockets.send(bytes(20 * MIB))
        await until(lambda: sockets.target.writing_paused)
    else:
        sockets.send(b"hello")
        await sockets.receive(5)
    assert not sockets.owner.cut
    if how == "reset":
        linger = struct.pack("ii", 1, 0)
        sockets.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        await sockets.stop_sending()
        sockets.client.close()
    else:
        sockets.client.shutdown(socket.SHUT_WR)
    await until(lambda: sockets.owner.cut)
    assert not sockets.owner.ended
    assert not sockets.splices.running


async def test_a_target_that_closes_is_left_to_its_transport(sockets: Sockets) -> None:
    splice = sockets.begin(30 * MIB)
    sockets.send(bytes(20 * MIB))
    await until(lambda: sockets.target.writing_paused)
    sockets.replica.close()
    await until(lambda: sockets.target.transport.is_closing())
    assert not sockets.owner.cut
    assert not sockets.owner.ended
    splice.close()


async def test_there_is_a_bound(sockets: Sockets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gatewayd.net.splice._MAX", 1)
    splice = sockets.begin(10)
    assert sockets.splices.open(sockets.source, sockets.target, 10, sockets.owner) is None
    splice.close()
    splice.close()
    sockets.begin(10)


@pytest.mark.parametrize("call", ["os.pipe2", "os.dup", "fcntl.fcntl"])
async def test_without_the_means_there_is_none(
    sockets: Sockets, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fails(*args: object) -> None:
        raise OSError

    monkeypatch.setattr(f"gatewayd.net.splice.{call}", fails)
    assert sockets.splices.open(sockets.source, sockets.target, 10, sockets.owner) is None


async def test_a_kernel_that_does_not_splice_moves_nothing(
    sockets: Sockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: object, **more: object) -> None:
        raise OSError

    monkeypatch.setattr("os.splice", fails)
    splice = sockets.splices.open(sockets.source, sockets.target, 10, sockets.owner)
    assert splice is not None
    with pytest.raises(OSError):  # noqa: PT011
        splice.start()
    splice.close()
    assert sockets.owner.moved == 0
    assert not sockets.owner.cut
