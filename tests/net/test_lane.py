"""Streams read and written past their transports: nothing is missed, lost or written astray."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import uvloop
from waiting import until

from gatewayd.net.lane import Lane, straight


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@dataclass
class Passenger(asyncio.Protocol):
    """One end of a pair of sockets, with its other end."""

    other: socket.socket
    seen: bytearray = field(default_factory=bytearray)
    reads: int = 0
    left: bool = False
    lost: bool = False
    open_when_lost: bool = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.fd = transport.get_extra_info("socket").fileno()

    def data_received(self, data: bytes) -> None:
        self.seen += data
        self.reads += 1

    def leave_lane(self) -> None:
        self.left = True
        self.lane.leave(self.fd, self)
        self.transport.resume_reading()

    def join(self, lane: Lane) -> None:
        self.lane = lane
        assert lane.join(self, self.transport) == self.fd
        self.transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self.open_when_lost = os.path.exists(f"/proc/self/fd/{self.fd}")


Connect = Callable[[], Any]


@pytest.fixture
async def lane() -> AsyncIterator[Lane]:
    lane = Lane(asyncio.get_running_loop())
    yield lane
    lane.close()


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    made: list[Passenger] = []

    async def connect() -> Passenger:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        loop = asyncio.get_running_loop()
        _, passenger = await loop.create_unix_connection(lambda: Passenger(theirs), sock=ours)
        made.append(passenger)
        return passenger

    yield connect
    for passenger in made:
        passenger.transport.abort()
        passenger.other.close()


async def test_what_had_come_before_is_not_missed(lane: Lane, connect: Connect) -> None:
    passenger = await connect()
    passenger.transport.pause_reading()
    passenger.other.send(b"before")
    passenger.join(lane)
    await until(lambda: passenger.seen == b"before")
    passenger.other.send(b" after")
    await until(lambda: passenger.seen == b"before after")


async def test_more_than_a_turn_reads_comes_whole(lane: Lane, connect: Connect) -> None:
    passenger, size = await connect(), 40 << 20
    passenger.join(lane)
    loop = asyncio.get_running_loop()
    await asyncio.wait_for(loop.sock_sendall(passenger.other, bytes(size)), 30)
    await until(lambda: len(passenger.seen) == size)


async def test_the_end_is_the_transports_to_tell(lane: Lane, connect: Connect) -> None:
    passenger = await connect()
    passenger.join(lane)
    passenger.other.send(b"last")
    passenger.other.close()
    await until(lambda: passenger.lost)
    assert (passenger.seen, passenger.left, len(lane)) == (b"last", True, 0)


async def test_who_leaves_is_read_by_its_transport_again(lane: Lane, connect: Connect) -> None:
    passenger = await connect()
    passenger.join(lane)
    passenger.other.send(b"a")
    await until(lambda: passenger.seen == b"a")
    passenger.leave_lane()
    passenger.other.send(b"b")
    await until(lambda: passenger.seen == b"ab")
    passenger.join(lane)
    passenger.other.send(b"c")
    await until(lambda: passenger.seen == b"abc")


async def test_leaving_after_the_descriptor_was_closed_and_used_again(
    lane: Lane, connect: Connect
) -> None:
    first = await connect()
    first.join(lane)
    first.transport.abort()
    await until(lambda: first.lost)
    await asyncio.sleep(0)
    second = await connect()
    second.join(lane)
    lane.leave(first.fd, first)
    second.other.send(b"mine")
    await until(lambda: second.seen == b"mine")
    assert not first.seen


async def test_who_leaves_in_a_turn_hears_no_more_in_it(lane: Lane, connect: Connect) -> None:
    both = [await connect(), await connect()]
    for passenger, other in zip(both, reversed(both), strict=True):
        passenger.join(lane)

        def data_received(data: bytes, other: Passenger = other) -> None:
            other.seen += data
            lane.leave(other.fd, other)

        passenger.data_received = data_received
    for passenger in both:
        passenger.other.send(b"x")
    await until(lambda: len(lane) == 1)
    assert sorted(bytes(passenger.seen) for passenger in both) == [b"", b"x"]


async def test_without_a_descriptor_for_itself_nobody_joins(lane: Lane, connect: Connect) -> None:
    passenger = await connect()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open("/dev/null", os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        assert lane.join(passenger, passenger.transport) == -1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    passenger.other.send(b"as ever")
    await until(lambda: passenger.seen == b"as ever")
    passenger.join(lane)


# --- writing


async def test_what_the_socket_does_not_take_is_the_transports_and_in_order(
    connect: Connect,
) -> None:
    passenger = await connect()
    write = straight(passenger.transport)
    said = b""
    for number in range(20_000):
        write(piece := b"%d," % number * 20)
        said += piece
    assert passenger.transport.get_write_buffer_size() > 0
    heard = bytearray()
    loop = asyncio.get_running_loop()
    while len(heard) < len(said):
        heard += await asyncio.wait_for(loop.sock_recv(passenger.other, 1 << 20), 30)
    assert heard == said
    assert passenger.transport.get_write_buffer_size() == 0
    write(b"at once")
    assert passenger.other.recv(100) == b"at once"


async def test_behind_what_the_transport_still_has(connect: Connect) -> None:
    passenger = await connect()
    passenger.transport.write(b"first,")
    write = straight(passenger.transport)
    write(b"second")
    loop = asyncio.get_running_loop()
    heard = b""
    while len(heard) < 12:
        heard += await asyncio.wait_for(loop.sock_recv(passenger.other, 100), 30)
    assert heard == b"first,second"


async def test_an_error_is_told_by_the_transport(connect: Connect) -> None:
    passenger = await connect()
    passenger.transport.pause_reading()
    write = straight(passenger.transport)
    passenger.other.close()
    write(b"to nobody")
    await until(lambda: passenger.lost)


@pytest.mark.parametrize("how", ["abort", "close"])
async def test_a_descriptor_is_closed_after_its_protocol_was_told(
    connect: Connect, how: str
) -> None:
    """Else a straight write could reach whoever has the number now."""
    passenger = await connect()
    getattr(passenger.transport, how)()
    await until(lambda: passenger.lost)
    assert passenger.open_when_lost
