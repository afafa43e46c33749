"""Streams read and written past their transports: nothing is missed, lost or written astray."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import cast

import pytest
import uvloop
from waiting import until

from gatewayd.net.lane import Lane, LaneFlow, Seal


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


def piece(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Ours(LaneFlow):
    """The replica's end of a stream, as the lane sees it."""

    def __init__(self, other: socket.socket) -> None:
        super().__init__()
        self.other = other
        self.seen = b""  # by the transport, not the lane
        self.lost = False
        self.open_when_lost = False

    @property
    def fd(self) -> int:
        return cast(int, self.transport.get_extra_info("socket").fileno())

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.number = self.fd

    def data_received(self, data: bytes) -> None:
        self.seen += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self.open_when_lost = os.path.exists(f"/proc/self/fd/{self.number}")


Connect = Callable[[], Awaitable[Ours]]


@pytest.fixture
async def lane() -> AsyncIterator[Lane]:
    lane = Lane(asyncio.get_running_loop())
    yield lane
    lane.close()


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    made: list[Ours] = []

    async def connect() -> Ours:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        loop = asyncio.get_running_loop()
        _, flow = await loop.create_unix_connection(lambda: Ours(theirs), sock=ours)
        made.append(flow)
        return flow

    yield connect
    for flow in made:
        flow.transport.abort()
        flow.other.close()


@dataclass
class Stream:
    """A replica's connection in the lane, and the client's connection that it is written to."""

    lane: Lane
    upstream: Ours
    client: Ours
    seal: Seal | None = None

    def join(self) -> None:
        self.upstream.join_lane(self.lane, (self.client.fd, self.client.transport.write, self.seal))

    def says(self, data: bytes) -> None:
        assert self.upstream.other.send(data) == len(data)

    async def hears(self, data: bytes) -> None:
        heard = b""
        loop = asyncio.get_running_loop()
        while len(heard) < len(data):
            heard += await asyncio.wait_for(loop.sock_recv(self.client.other, 1 << 20), 30)
        assert heard == data


@pytest.fixture
async def stream(lane: Lane, connect: Connect) -> Stream:
    return Stream(lane, await connect(), await connect())


A, B, C = piece(b"first"), piece(b"second" * 50), piece(b"third")


async def test_whole_chunks_pass_and_are_counted(stream: Stream) -> None:
    stream.join()
    for data in (A, B, A + B + C):
        stream.says(data)
        await stream.hears(data)
    assert stream.upstream.received == 2 * len(A + B) + len(C)
    assert (stream.upstream.seen, len(stream.lane)) == (b"", 1)


async def test_what_had_come_before_is_not_missed(stream: Stream) -> None:
    stream.upstream.transport.pause_reading()
    stream.says(A)
    stream.join()
    await stream.hears(A)


@pytest.mark.parametrize(
    "data",
    [
        b"0\r\n\r\n",
        B + b"0\r\n\r\n",
        B[:20],
        B + C[:3],
        b"not hex\r\n",
        b"3;extension\r\nabc\r\n",
        piece(b"." * 64 * 1024),
    ],
)
async def test_all_else_is_the_transports(stream: Stream, data: bytes) -> None:
    stream.join()
    stream.says(A)
    await stream.hears(A)
    stream.says(data)
    await until(lambda: stream.upstream.seen == data)
    assert (stream.upstream.in_lane, len(stream.lane)) == (False, 0)
    stream.says(C)
    await until(lambda: stream.upstream.seen == data + C)
    stream.join()
    stream.says(B)
    await stream.hears(B)


async def test_the_end_is_told_by_the_transport_behind_the_last_bytes(stream: Stream) -> None:
    stream.join()
    stream.says(A)
    stream.upstream.other.close()
    await until(lambda: stream.upstream.lost)
    assert (stream.upstream.seen, len(stream.lane)) == (A, 0)


async def test_half_an_end_is_one(stream: Stream) -> None:
    stream.join()
    stream.says(A)
    stream.upstream.other.shutdown(socket.SHUT_WR)
    await until(lambda: stream.upstream.lost)
    assert stream.upstream.seen == A


async def test_who_is_paused_leaves_and_reads_on_later(stream: Stream) -> None:
    stream.join()
    stream.upstream.pause_reading()
    assert len(stream.lane) == 0
    stream.says(A)
    await asyncio.sleep(0.05)
    assert stream.upstream.seen == b""
    stream.upstream.resume_reading()
    await until(lambda: stream.upstream.seen == A)


async def test_leaving_after_the_descriptor_was_closed_and_used_again(
    stream: Stream, connect: Connect
) -> None:
    first = stream.upstream
    stream.join()
    first.transport.abort()
    await until(lambda: first.lost and not os.path.exists(f"/proc/self/fd/{first.number}"))
    stream.upstream = await connect()
    assert stream.upstream.number == first.number
    stream.join()
    stream.lane.leave(first.number, first)
    stream.says(A)
    await stream.hears(A)


async def test_who_leaves_in_a_turn_hears_no_more_in_it(lane: Lane, connect: Connect) -> None:
    both, client = [await connect(), await connect()], await connect()
    for flow, other in zip(both, reversed(both), strict=True):

        def seal(data: bytes, other: Ours = other) -> bytes:
            other.leave_lane()
            return data

        flow.join_lane(lane, (client.fd, client.transport.write, seal))
    for flow in both:
        flow.other.send(A)
    await until(lambda: sorted(flow.seen for flow in both) == [b"", A])
    assert client.other.recv(1000) == A


async def test_one_that_fails_costs_the_others_of_its_turn_nothing(
    lane: Lane, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """Their events are not told again."""
    client = await connect()
    broken, sound = [await connect() for _ in range(3)], [await connect() for _ in range(3)]

    def seal(data: bytes) -> bytes:
        raise ValueError("broken")

    for flow in broken:
        flow.join_lane(lane, (client.fd, client.transport.write, seal))
    for flow in sound:
        flow.join_lane(lane, (client.fd, client.transport.write, None))
    for flow in (broken[0], sound[0], broken[1], sound[1], sound[2], broken[2]):
        flow.other.send(A)
    await until(lambda: all(flow.lost for flow in broken))
    assert client.other.recv(1000) == A * 3
    assert all(flow.in_lane for flow in sound)
    assert caplog.text.count("ValueError: broken") == 3


async def test_what_is_sealed_goes_out_as_it_was_made(stream: Stream) -> None:
    stream.seal = bytes.upper
    stream.join()
    stream.says(A)
    await stream.hears(A.upper())
    stream.seal = lambda data: b""  # it went another way
    stream.upstream.leave_lane()
    stream.join()
    stream.says(A)
    await until(lambda: stream.upstream.received == 2 * len(A))
    assert stream.upstream.in_lane
    with pytest.raises(BlockingIOError):
        stream.client.other.recv(1)


async def test_without_a_descriptor_for_itself_nobody_joins(stream: Stream) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open("/dev/null", os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        stream.join()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not stream.upstream.in_lane
    stream.says(A)
    await until(lambda: stream.upstream.seen == A)
    stream.join()
    assert stream.upstream.in_lane


async def test_a_client_that_takes_a_part_gets_the_rest_by_its_transport(stream: Stream) -> None:
    stream.join()
    said = b""
    while stream.upstream.in_lane:
        stream.says(data := piece(b"%d," % len(said) * 500))
        said += data
        size = len(said)
        await until(lambda size=size: stream.upstream.received == size)  # type: ignore[misc]
    assert stream.client.transport.get_write_buffer_size() > 0
    await stream.hears(said)


@pytest.mark.parametrize("how", ["abort", "close"])
async def test_a_descriptor_is_closed_after_its_protocol_was_told(
    connect: Connect, how: str
) -> None:
    """Else a straight write could reach whoever has the number now."""
    passenger = await connect()
    getattr(passenger.transport, how)()
    await until(lambda: passenger.lost)
    assert passenger.open_when_lost


async def test_what_a_transport_has_not_sent_it_counts(connect: Connect) -> None:
    """Else who writes or splices past it could overtake what it was given in the same turn."""
    flow = await connect()
    flow.transport.write(A)
    assert flow.other.recv(1000) == A
    assert flow.transport.get_write_buffer_size() == 0
    flow.transport.write(bytes(1 << 20))
    assert flow.transport.get_write_buffer_size() == (1 << 20) - len(flow.other.recv(1 << 20))
