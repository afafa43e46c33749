"""A client that leaves: its replica is told within milliseconds, in every phase."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import pytest
from conversation import Wire, get, post, reply
from harness import Gateway
from waiting import until

from gatewayd.core.model import HttpAuth, UnixAddress

LEAVING = ["close", "half_close", "reset"]


async def told(wire: Wire) -> float:
    started = time.monotonic()
    await wire.gone()
    return time.monotonic() - started


@pytest.mark.parametrize("how", LEAVING)
async def test_before_the_first_byte(gateway: Gateway, how: str) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(post(b"{}"))
    wire, _ = await replica.request()
    getattr(client, how)()
    assert await told(wire) < 2
    assert gateway.load(replica) == 0
    assert gateway.totals().codes == {499: 1}


@pytest.mark.parametrize("how", LEAVING)
async def test_in_a_quiet_stream(gateway: Gateway, how: str) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(post(b"{}"))
    wire, _ = await replica.request()
    await wire.send(reply(b"", framing="chunked")[:-5] + b"5\r\nhello\r\n")
    await client.upto(b"hello\r\n")
    getattr(client, how)()
    assert await told(wire) < 2
    assert gateway.load(replica) == 0
    assert gateway.totals().codes == {200: 1}


async def test_within_milliseconds_by_the_median(gateway: Gateway) -> None:
    replica = await gateway.serve()
    took = []
    for _ in range(15):
        client = await gateway.client()
        await client.send(post(b"{}"))
        wire, _ = await replica.request()
        client.close()
        took.append(await told(wire))
    assert sorted(took)[7] < 0.05


async def test_behind_the_head_of_an_answer_that_prefills(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(post(b"{}"))
    wire, _ = await replica.request()
    await wire.send(reply(b"", framing="chunked")[:-5])
    await client.upto(b"\r\n\r\n")
    client.close()
    assert await told(wire) < 2


async def test_in_the_middle_of_an_upload(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(post(b"x" * 1000)[:-1])
    wire = await replica.accept()
    await wire.upto(b"\r\n\r\n")
    client.close()
    assert await told(wire) < 2


async def test_with_an_upload_that_the_replica_does_not_take(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    client.writer.write(post(b"x" * 30_000_000))
    wire = await replica.accept()
    await wire.upto(b"\r\n\r\n")
    (forward,) = gateway.plane.sweeper.active
    connection = forward._connection
    assert connection is not None
    await until(lambda: connection.writing_paused)
    client.reset()
    assert await told(wire) < 1.0


async def test_with_an_answer_that_it_does_not_take(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client(receive_buffer=4096)
    await client.send(get())
    wire, _ = await replica.request()
    wire.writer.write(reply(b"x" * 30_000_000))
    (forward,) = gateway.plane.sweeper.active
    connection = forward._connection
    assert connection is not None
    await until(lambda: connection.reading_paused)
    client.reset()
    started = time.monotonic()
    await until(lambda: wire.writer.transport.is_closing())
    assert time.monotonic() - started < 1.0


async def test_while_requests_wait_behind_it(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get("/1") + get("/2") + get("/3"))
    wire, _ = await replica.request()
    client.close()
    await told(wire)
    await until(lambda: not gateway.server.connections)
    assert len(replica.wires) == 1


async def test_while_the_connection_to_the_replica_is_made(gateway: Gateway) -> None:
    """A full backlog: the attempt waits. Nobody may be left with a connection for nobody."""
    replica = await gateway.serve()
    replica.stop_listening()
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as filler:
        listening.bind(str(replica.path))
        listening.listen(0)
        filler.connect(str(replica.path))
        client = await gateway.client()
        await client.send(get())
        await until(lambda: gateway.plane.sweeper.active)
        client.close()
        await until(lambda: not gateway.plane.sweeper.active)
        assert gateway.load(replica) == 0


async def test_at_the_moment_of_connecting(gateway: Gateway) -> None:
    """Whatever the order of events, every connection to the replica ends."""
    replica = await gateway.serve()
    for turn in range(60):
        client = await gateway.client()
        await client.send(get())
        for _ in range(turn % 6):
            await asyncio.sleep(0)
        client.reset() if turn % 2 else client.close()
    await until(lambda: not gateway.plane.sweeper.active)
    await until(lambda: not gateway.server.connections)
    for wire in replica.wires:
        await wire.gone()


async def test_while_an_authority_is_asked(gateway: Gateway) -> None:
    authority = await gateway.add_replica("authority")
    gateway.auth = HttpAuth(UnixAddress(str(authority.path)), "/check")
    replica = await gateway.serve(auth=True)
    client = await gateway.client()
    await client.send(get("/", "Authorization: Bearer t"))
    wire, _ = await authority.request()
    client.close()
    await until(lambda: gateway.totals().codes == {499: 1})
    await wire.send(reply())  # the question lives on, for the next who asks
    assert replica.untouched
    replica.answers = reply(b"known")
    client = await gateway.client()
    assert (await client.ask(get("/", "Authorization: Bearer t"))).body == b"known"
    assert len(authority.wires) == 1


async def test_a_client_that_closes_between_requests_disturbs_nobody(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get())
    wire, _ = await replica.request()
    await wire.send(reply())
    assert (await client.message()).status == 200
    client.close()
    await until(lambda: not gateway.server.connections)
    await wire.nothing()
    assert gateway.idle_connections == 1


@pytest.mark.parametrize("phase", ["first byte", "stream"])
async def test_who_closed_first_is_on_record(gateway: Gateway, phase: str) -> None:
    ended: list[Any] = []
    gateway.edge.access_log.write = ended.extend  # type: ignore[method-assign]
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(post(b"{}"))
    wire, _ = await replica.request()
    if phase == "stream":
        await wire.send(reply(b"12345")[:-2])
        await client.upto(b"123")
    client.close()
    await told(wire)
    gateway.edge.records.flush()
    (exchange,) = ended
    assert exchange.closed_by == "client"
    assert exchange.status == (200 if phase == "stream" else 499)
    assert exchange.bytes_out == (3 if phase == "stream" else 0)
