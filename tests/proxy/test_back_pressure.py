"""A side that stalls holds the other back: some MB are in flight, whatever the size of a body."""

from __future__ import annotations

import asyncio
import socket

import pytest
from conversation import Wire, get, reply
from harness import Gateway

MIB = 1 << 20
BODY = 100 * MIB
BOUND = 3 * MIB  # what the kernel's buffers and ours take; over Unix sockets, whose buffers are
# small: those of TCP on the loopback grow to more than ten MB by themselves


class Feeder:
    """Writes a large body as fast as it is taken, and knows how much was taken."""

    def __init__(self, wire: Wire, size: int) -> None:
        self.taken = 0
        self._wire = wire
        self._size = size
        self.task = asyncio.create_task(self._feed())

    async def _feed(self) -> None:
        writer = self._wire.writer
        writer.transport.set_write_buffer_limits(high=65536, low=0)
        piece = bytes(65536)
        while self.taken < self._size:
            writer.write(piece)
            await writer.drain()
            self.taken += len(piece)

    async def stalled(self) -> int:
        """How much was taken when nothing has been for a while."""
        before = -1
        while before != self.taken:
            before = self.taken
            await asyncio.sleep(0.1)
        return self.taken

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def swallow(wire: Wire, size: int) -> int:
    """Takes at most `size` bytes."""
    got = 0
    while got < size and (data := await wire.reader.read(min(1 << 20, size - got))):
        got += len(data)
    return got


@pytest.mark.parametrize("framing", ["counted", "chunked", "until the end"])
async def test_a_reader_that_stalls_holds_the_replica_back(gateway: Gateway, framing: str) -> None:
    replica = await gateway.serve()
    client = await gateway.unix_client(await gateway.listen_unix())
    await client.send(get())
    wire, _ = await replica.request()
    fields = {
        "counted": f"Content-Length: {BODY}",
        "chunked": "Transfer-Encoding: chunked",
        "until the end": "X-None: 1",
    }[framing]
    await wire.send(reply(b"", fields, framing="none"))
    if framing == "chunked":
        await wire.send(b"%x\r\n" % BODY)
    await client.upto(b"\r\n\r\n")
    feeder = Feeder(wire, BODY)
    assert await feeder.stalled() < BOUND
    (connection,) = gateway.server.each()
    assert connection.transport is not None
    assert connection.transport.get_write_buffer_size() < MIB
    # It goes on when it reads again, to the last byte.
    size = BODY if framing != "chunked" else BODY + len(b"%x\r\n" % BODY)
    assert await asyncio.wait_for(swallow(client, size), 20) == size
    await feeder.stop()


@pytest.mark.parametrize("framing", ["counted", "chunked"])
async def test_a_replica_that_stalls_holds_the_upload_back(gateway: Gateway, framing: str) -> None:
    replica = await gateway.serve(client_max_body_size=BODY * 2)
    client = await gateway.unix_client(await gateway.listen_unix())
    field = {"counted": f"Content-Length: {BODY}", "chunked": "Transfer-Encoding: chunked"}
    await client.send(get("/", field[framing], method="POST"))
    if framing == "chunked":
        await client.send(b"%x\r\n" % BODY)
    wire = await replica.accept()
    await wire.upto(b"\r\n\r\n")
    feeder = Feeder(client, BODY)
    assert await feeder.stalled() < BOUND
    (forward,) = gateway.plane.sweeper.active
    assert forward._connection is not None
    assert forward._connection.transport.get_write_buffer_size() < MIB
    (connection,) = gateway.server.each()
    assert connection.exchange is not None
    assert connection.exchange.payload._size < MIB
    # It goes on when the replica reads again, to the last byte.
    if framing == "counted":
        assert await asyncio.wait_for(swallow(wire, BODY), 20) == BODY
    else:
        got = asyncio.create_task(unchunked(wire))
        await asyncio.wait_for(feeder.task, 20)
        await client.send(b"\r\n0\r\n\r\n")
        assert await asyncio.wait_for(got, 20) == BODY
    await wire.send(reply())
    assert (await client.message()).status == 200
    await feeder.stop()


async def unchunked(wire: Wire) -> int:
    """The size of a chunked body."""
    total = 0
    while True:
        size = int((await wire.upto(b"\r\n"))[:-2], 16)
        await wire.reader.readexactly(size + 2)
        if not size:
            return total
        total += size


async def test_an_upload_waits_unread_while_the_request_is_not_admitted(gateway: Gateway) -> None:
    """Before the replica is connected nothing is asked for beyond the reader's buffer."""
    replica = await gateway.serve(client_max_body_size=BODY * 2)
    replica.stop_listening()
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as filler:
        listening.bind(str(replica.path))
        listening.listen(0)
        filler.connect(str(replica.path))
        client = await gateway.unix_client(await gateway.listen_unix())
        await client.send(get("/", f"Content-Length: {BODY}", method="POST"))
        feeder = Feeder(client, BODY)
        assert await feeder.stalled() < BOUND
        (connection,) = gateway.server.each()
        assert connection.exchange is not None
        assert connection.exchange.payload._size < MIB
        await feeder.stop()


async def test_a_stalled_reader_holds_nobody_else_back(gateway: Gateway) -> None:
    replica = await gateway.serve()
    stalled = await gateway.client(receive_buffer=4096)
    await stalled.send(get("/large"))
    wire, _ = await replica.request()
    await wire.send(reply(b"", f"Content-Length: {BODY}", framing="none"))
    feeder = Feeder(wire, BODY)
    await feeder.stalled()
    replica.answers = reply(b"quick")
    client = await gateway.client()
    for _ in range(20):
        assert (await client.ask(get())).body == b"quick"
    await feeder.stop()
