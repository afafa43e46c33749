"""Bodies so large that the kernel passes on the rest, once their beginning has been read."""

from __future__ import annotations

import asyncio
import random

import pytest
from certificates import Authority
from conversation import Cut, Replica, Wire, get, post, reply
from endpoint import chat, open_endpoint
from harness import Gateway
from waiting import until

from gatewayd.core.model import Replica as Registered
from gatewayd.core.model import TcpAddress
from gatewayd.net.splice import Splice

MIB = 1 << 20
SIZE = 12 * MIB


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)  # noqa: S311


BODY = noise(SIZE)


async def begun(gateway: Gateway, replica: Replica) -> tuple[Wire, Wire, Splice]:
    """A client that has sent the beginning of `BODY`, and its replica's connection, which has that;
    the kernel waits for the rest."""
    client = await gateway.client()
    await client.send(post(BODY)[:-SIZE], BODY[:1000])
    wire = await replica.accept()
    await wire.upto(b"\r\n\r\n")
    await wire.expect(BODY[:1000])
    await until(lambda: gateway.plane.splices.running, "the kernel has taken over")
    (splice,) = gateway.plane.splices.running
    return client, wire, splice


async def test_every_byte_arrives_and_requests_follow(gateway: Gateway) -> None:
    """The next head right behind a body: it is not taken for a part of it."""
    replica = await gateway.serve()
    replica.answers = lambda request: reply(request.target.encode() + request.body)
    client = await gateway.client()
    sending = asyncio.create_task(
        client.send(post(BODY, "/1") + get("/2") + post(BODY, "/3") + post(b"small", "/4"))
    )
    for answer in (b"/1" + BODY, b"/2", b"/3" + BODY, b"/4small"):
        assert (await client.message()).body == answer
    await sending
    totals = gateway.totals()
    assert totals.bytes_in == 2 * SIZE + 5
    assert totals.codes == {200: 4}


async def test_a_client_that_keeps_its_connection(gateway: Gateway) -> None:
    """Its later heads are known, and its parser has gone with the first body."""
    replica = await gateway.serve()
    replica.answers = lambda request: reply(request.body)
    client = await gateway.client()
    for body in (b"a", BODY, b"b", BODY, b"c" * 70_000, b"d"):
        sending = asyncio.create_task(client.send(post(body)[: -len(body)], body))
        assert (await client.message()).body == body
        await sending


async def test_the_rest_does_not_come_by_us(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client, wire, _ = await begun(gateway, replica)
    (connection,) = gateway.server.each()
    assert connection.exchange is not None
    payload = connection.exchange.payload
    sending = asyncio.create_task(client.send(BODY[1000:]))
    assert await wire.exactly(SIZE - 1000) == BODY[1000:]
    await sending
    await until(lambda: not gateway.plane.splices.running)
    assert payload.total_bytes == 1000  # type: ignore[attr-defined]
    await wire.send(reply(b"done"))
    assert (await client.message()).body == b"done"


async def test_pieces_are_not_held_back(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client, wire, _ = await begun(gateway, replica)
    for at in range(1000, 1100):
        await client.send(BODY[at : at + 1])
        await wire.expect(BODY[at : at + 1])


async def test_a_replica_on_tcp(gateway: Gateway) -> None:
    replica = await gateway.serve()
    server = await asyncio.start_server(replica._connected, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    gateway.change(replicas=(Registered("chat-a", TcpAddress("127.0.0.1", port)),))
    replica.answers = lambda request: reply(request.body)
    client = await gateway.client()
    sending = asyncio.create_task(client.send(post(BODY)))
    assert (await client.message()).body == BODY
    await sending
    server.close()


async def test_the_model_endpoint(gateway: Gateway) -> None:
    """The beginning of the body has been read for its model."""
    replica = await open_endpoint(gateway)
    replica.answers = lambda request: reply(request.body)
    body = b'{"model": "m", "image": "%b"}' % (b"x" * SIZE)
    client = await gateway.client()
    sending = asyncio.create_task(client.send(chat(body)))
    assert (await client.message()).body == body
    await sending


async def test_https(secure: Gateway, authority: Authority) -> None:
    """What has to be decrypted is not left to the kernel."""
    replica = await secure.serve()
    replica.answers = lambda request: reply(request.body)
    client = await secure.tls_client(authority.client())
    sending = asyncio.create_task(client.send(post(BODY)))
    assert (await client.message()).body == BODY
    await sending


@pytest.mark.parametrize("fails", ["os.splice", "os.pipe2"])
async def test_where_the_kernel_cannot(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    tried = []

    def failing(*args: object, **more: object) -> None:
        tried.append(args)
        raise OSError

    monkeypatch.setattr(f"gatewayd.net.splice.{fails}", failing)
    replica = await gateway.serve()
    replica.answers = lambda request: reply(request.body)
    client = await gateway.client()
    for _ in range(2):
        sending = asyncio.create_task(client.send(post(BODY)))
        assert (await client.message()).body == BODY
        await sending
    assert len(tried) == 2


async def test_a_rest_that_has_come_with_the_next_request(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left for the kernel, and what was read is more than the body."""
    monkeypatch.setattr("gatewayd.proxy.upload._SPLICE_SIZE", 1)
    replica = await gateway.serve()
    replica.answers = lambda request: reply(request.target.encode() + request.body)
    client = await gateway.client()
    await client.send(post(b"0123456789", "/1")[:-10], b"0123456789" + get("/2"))
    assert (await client.message()).body == b"/10123456789"
    assert (await client.message()).body == b"/2"


# --- ends


async def test_a_body_that_stops_is_408(gateway: Gateway) -> None:
    gateway.limit(body_idle_timeout=0.1)
    replica = await gateway.serve()
    client, wire, _ = await begun(gateway, replica)
    answer = await client.message()
    assert (answer.status, answer.closes) == (408, True)
    assert await wire.gone() == b""
    assert gateway.totals().codes == {408: 1}


async def test_a_replica_that_does_not_take_it_is_late_itself(gateway: Gateway) -> None:
    gateway.limit(body_idle_timeout=0.1)
    replica = await gateway.serve()
    client, wire, _ = await begun(gateway, replica)
    client.writer.write(BODY[1000:])
    assert (await client.message()).status == 504
    assert gateway.totals().upstream_errors == {("chat-a", "send_timeout"): 1}
    with pytest.raises(Cut):
        await wire.exactly(SIZE - 1000)


@pytest.mark.parametrize("how", ["close", "half_close", "reset"])
async def test_a_client_that_leaves(gateway: Gateway, how: str) -> None:
    replica = await gateway.serve()
    client, wire, _ = await begun(gateway, replica)
    await client.send(BODY[1000:2000])
    await wire.expect(BODY[1000:2000])
    getattr(client, how)()
    assert await wire.gone() == b""
    await until(lambda: not gateway.plane.sweeper.active)
    totals = gateway.totals()
    assert totals.codes == {499: 1}
    assert totals.bytes_in == 2000


async def test_a_client_that_leaves_a_replica_that_takes_nothing(gateway: Gateway) -> None:
    """Though more of its body lies unread."""
    replica = await gateway.serve()
    client, wire, _ = await begun(gateway, replica)
    client.writer.write(BODY[1000:])
    (forward,) = gateway.plane.sweeper.active
    connection = forward._connection
    assert connection is not None
    await until(lambda: connection.writing_paused)
    client.reset()
    await until(lambda: not gateway.plane.sweeper.active)
    await wire.gone()
    assert gateway.totals().codes == {499: 1}


@pytest.mark.parametrize("framing", [None, "chunked"])
async def test_an_early_answer_is_delivered_whole(gateway: Gateway, framing: str | None) -> None:
    replica = await gateway.serve()
    client, wire, _ = await begun(gateway, replica)
    await wire.send(reply(b"enough", status="413 Content Too Large", framing=framing))
    answer = await client.message()
    assert (answer.status, answer.body, answer.closes) == (413, b"enough", True)
    # What it still sends is taken for a while, so that no reset overtakes the answer.
    await client.send(BODY[1000:])
    assert await client.rest() == b""
    await wire.gone()
    assert gateway.idle_connections == 0
    assert gateway.totals().codes == {413: 1}


async def test_an_early_answer_and_a_close_by_the_replica(gateway: Gateway) -> None:
    """We cannot write any more, and its answer lies in the socket."""
    replica = await gateway.serve()
    for _ in range(10):
        client, wire, _ = await begun(gateway, replica)
        client.writer.write(BODY[1000:])
        wire.writer.write(reply(b"enough", "Connection: close", status="413 Content Too Large"))
        wire.close()
        answer = await client.message()
        assert (answer.status, answer.body) == (413, b"enough")
        client.close()
        await until(lambda: not gateway.plane.sweeper.active)


async def test_a_replica_that_is_gone_is_502(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client, wire, _ = await begun(gateway, replica)
    client.writer.write(BODY[1000:])
    wire.close()
    answer = await client.message()
    assert (answer.status, answer.closes) == (502, True)
    assert len(replica.wires) == 1


async def test_an_answer_streams_under_it(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client, wire, _ = await begun(gateway, replica)
    await wire.send(reply(b"", framing="chunked")[:-5] + b"5\r\nhello\r\n")
    await client.upto(b"hello\r\n")
    sending = asyncio.create_task(client.send(BODY[1000:]))
    assert await wire.exactly(SIZE - 1000) == BODY[1000:]
    await sending
    await wire.send(b"0\r\n\r\n")
    await client.expect(b"0\r\n\r\n")
    assert await client.rest() == b""


async def test_a_replica_that_dies_under_a_stream_cuts_it(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client, wire, _ = await begun(gateway, replica)
    await wire.send(reply(b"", framing="chunked")[:-5] + b"5\r\nhello\r\n")
    await client.upto(b"hello\r\n")
    client.writer.write(BODY[1000:])
    wire.close()
    assert b"0\r\n" not in await client.gone()
