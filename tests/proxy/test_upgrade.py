"""Tunnels: WebSocket with the real client and server, other protocols byte by byte."""

from __future__ import annotations

import asyncio

import pytest
import websockets
from conversation import Message, Wire, get, reply
from harness import Gateway
from waiting import until

from gatewayd.core.model import Timeouts

SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %b\r\nX-Own: yes\r\n\r\n"
)


def asking(token: str, *fields: str) -> bytes:
    return get("/chat", "Connection: Upgrade", f"Upgrade: {token}", *fields)


async def tunnel(gateway: Gateway, protocol: str = "speech/2") -> tuple[Wire, Wire]:
    replica = gateway.replicas.get("chat-a") or await gateway.serve()
    client = await gateway.client()
    await client.send(asking(protocol))
    wire, request = await replica.request()
    assert (request["Connection"], request["Upgrade"]) == ("Upgrade", protocol)
    await wire.send(SWITCH % protocol.encode())
    answer = await client.message()
    assert answer.status == 101
    assert answer["Connection"].lower() == "upgrade"
    assert (answer["Upgrade"], answer["X-Own"]) == (protocol, "yes")
    assert answer["X-Request-Id"] == request["X-Request-Id"]
    return client, wire


# --- WebSocket


async def test_a_real_websocket_client_talks_to_a_real_server(gateway: Gateway) -> None:
    async def echo(connection: websockets.ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)

    replica = await gateway.serve()
    replica.stop_listening()
    async with websockets.unix_serve(echo, str(replica.path), max_size=1 << 24):
        async with websockets.connect(
            "ws://chat.example/socket", host="127.0.0.1", port=gateway.port, max_size=1 << 24
        ) as socket:
            for message in ("hello", b"\x00\xff" * 10, "x" * 3_000_000, b""):
                await socket.send(message)
                assert await socket.recv() == message
            await (await socket.ping())
            await socket.close(1000, "bye")
        assert socket.close_code == 1000
    assert gateway.totals().codes == {101: 1}


# --- any protocol


@pytest.mark.parametrize("token", ["speech/2", "websocket", "tcp"])
async def test_bytes_pass_both_ways_as_they_are(gateway: Gateway, token: str) -> None:
    client, wire = await tunnel(gateway, token)
    for turn in range(3):
        await client.send(b"ask %d\r\n\r\n" % turn)
        await wire.expect(b"ask %d\r\n\r\n" % turn)
        await wire.send(b"tell %d\x00\xff" % turn)
        await client.expect(b"tell %d\x00\xff" % turn)


async def test_bytes_behind_the_101_are_passed_on(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(asking("speech/2"))
    wire, _ = await replica.request()
    await wire.send(SWITCH % b"speech/2" + b"early word")
    await client.message()
    await client.expect(b"early word")
    await wire.send(b", later word")
    await client.expect(b", later word")


@pytest.mark.parametrize("token", ["speech/2", "websocket"])
@pytest.mark.parametrize("together", [True, False])
async def test_bytes_before_the_101_wait_for_it(
    gateway: Gateway, token: str, together: bool
) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    early = b"GET /looks/like HTTP/1.1\r\n\r\n\x00\xff"
    if together:
        await client.send(asking(token) + early)
    else:
        await client.send(asking(token), early)
    wire, _ = await replica.request()
    await wire.nothing()
    await wire.send(SWITCH % token.encode())
    assert (await client.message()).status == 101
    await wire.expect(early)
    await client.send(b"more")
    await wire.expect(b"more")


@pytest.mark.parametrize("token", ["speech/2", "websocket"])
@pytest.mark.parametrize("status", ["200 OK", "403 Forbidden", "426 Upgrade Required"])
async def test_a_refused_upgrade_is_an_ordinary_answer(
    gateway: Gateway, token: str, status: str
) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(asking(token))
    wire, _ = await replica.request()
    await wire.send(reply(b"no", status=status))
    answer: Message = await client.message()
    assert (answer.start, answer.body) == (f"HTTP/1.1 {status}", b"no")
    assert answer.closes  # what may follow on this connection cannot be understood
    assert await client.rest() == b""


async def test_an_upgrade_that_was_not_asked_for_with_connection_is_none(
    gateway: Gateway,
) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get("/", "Upgrade: websocket"))
    wire, request = await replica.request()
    assert "Upgrade" not in request
    await wire.send(SWITCH % b"websocket")
    assert (await client.message()).status == 502


async def test_an_upgrade_of_http_1_0_is_none(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(
        b"GET / HTTP/1.0\r\nHost: chat.example\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    )
    wire, request = await replica.request()
    assert "Upgrade" not in request
    await wire.send(reply(b"plain"))
    assert (await client.message()).body == b"plain"


@pytest.mark.parametrize("who", ["client", "replica"])
@pytest.mark.parametrize("how", ["close", "half_close", "reset"])
async def test_the_end_of_either_side_is_the_end_of_the_other(
    gateway: Gateway, who: str, how: str
) -> None:
    client, wire = await tunnel(gateway)
    first, second = (client, wire) if who == "client" else (wire, client)
    await first.send(b"last words")
    await second.expect(b"last words")
    getattr(first, how)()
    assert await second.gone() == b""
    await until(lambda: not gateway.plane.sweeper.active)


async def test_what_was_said_before_the_end_arrives(gateway: Gateway) -> None:
    client, wire = await tunnel(gateway)
    words = b"x" * 1_000_000
    wire.writer.write(words)
    wire.close()
    assert await client.rest() == words


async def test_a_tunnel_without_a_word_is_cut_at_the_idle_bound(gateway: Gateway) -> None:
    await gateway.serve(timeouts=Timeouts(first_byte=0.3, idle=0.1))
    client, wire = await tunnel(gateway)
    await wire.send(b"a word")
    await client.expect(b"a word")
    for _ in range(5):  # either direction keeps it
        await client.send(b"alive")
        await wire.expect(b"alive")
        await asyncio.sleep(0.05)
    await client.gone()
    await wire.gone()


async def test_a_tunnel_holds_the_faster_side_back(gateway: Gateway) -> None:
    client, wire = await tunnel(gateway)
    (connection,) = gateway.server.each()
    client.writer.write(b"u" * 30_000_000)
    upstream = connection._tunnel
    assert upstream is not None
    await until(lambda: upstream.writing_paused)
    assert upstream.transport.get_write_buffer_size() < 2_000_000
    received = len(await wire.exactly(30_000_000))
    assert received == 30_000_000
    wire.writer.write(b"d" * 30_000_000)
    assert len(await client.exactly(30_000_000)) == 30_000_000
    await client.send(b"still there")
    await wire.expect(b"still there")


async def test_a_tunnel_counts_its_bytes(gateway: Gateway) -> None:
    client, wire = await tunnel(gateway)
    await client.send(b"12345")
    await wire.expect(b"12345")
    await wire.send(b"123")
    await client.expect(b"123")
    client.close()
    await wire.gone()
    await until(lambda: gateway.totals().codes)
    totals = gateway.totals()
    assert (totals.codes, totals.bytes_in, totals.bytes_out) == ({101: 1}, 5, 3)


async def test_a_protocol_cannot_be_switched_before_the_request_is_there(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    head = get("/", "Connection: upgrade", "Upgrade: x", "Content-Length: 4", method="POST")
    await client.send(head + b"bo")
    wire = await replica.accept()
    await wire.upto(b"bo")
    await wire.send(SWITCH % b"x")
    assert (await client.message()).status == 502
    await wire.gone()


async def test_an_upgrade_with_a_body_sends_the_body_first(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    head = get("/", "Connection: upgrade", "Upgrade: speech/2", "Content-Length: 4", method="POST")
    await client.send(head + b"body" + b"early")
    wire, request = await replica.request()
    assert request.body == b"body"
    await wire.send(SWITCH % b"speech/2")
    assert (await client.message()).status == 101
    await wire.expect(b"early")
