"""Streams that last are passed on another way, and nobody can tell."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority
from conversation import Cut, Replica, Wire, chunked, get, post, reply
from harness import HELLO, Gateway
from waiting import until

from gatewayd.core.model import Timeouts

BEGUN = reply(b"", "Content-Type: text/event-stream", framing="chunked")[:-5]
FIRST = chunked(b"data: 1\n\n")[:-5]
SECOND = chunked(b"data: 2\n\n")[:-5]
END = b"0\r\n\r\n"

Lasting = Callable[..., Awaitable[tuple[Wire, Wire]]]


async def lasts(gateway: Gateway, count: int = 1) -> None:
    await until(lambda: len(gateway.plane.lane) == count, "it goes by the lane")


async def open_stream(gateway: Gateway, replica: Replica, client: Wire) -> Wire:
    await client.send(HELLO)
    upstream = await replica.accept()
    await upstream.message()
    await upstream.send(BEGUN + FIRST)
    await client.upto(b"\r\n\r\n")
    await client.expect(FIRST)
    return upstream


@pytest.fixture(params=["plain", "tls"])
async def lasting(
    request: pytest.FixtureRequest, gateway: Gateway, authority: Authority
) -> Lasting:
    async def lasting(**policy: Any) -> tuple[Wire, Wire]:
        """The client's and the replica's end of a stream that has lasted for a while."""
        replica = await gateway.serve(**policy)
        if request.param == "tls":
            await gateway.listen_tls(authority.pair("chat.example"))
            client = await gateway.tls_client(authority.client())
        else:
            client = await gateway.client()
        upstream = await open_stream(gateway, replica, client)
        await lasts(gateway)
        return client, upstream

    return lasting


async def test_events_pass_and_the_connections_are_used_again(
    gateway: Gateway, lasting: Lasting
) -> None:
    client, upstream = await lasting()
    for number in range(100):
        event = chunked(b"data: %d\n\n" % 3**number)[:-5]
        await upstream.send(event)
        await client.expect(event)
    await upstream.send(SECOND + SECOND, SECOND[:3], SECOND[3:], END)
    await client.expect(SECOND * 3 + END)
    assert len(gateway.plane.lane) == 0
    await client.send(HELLO)
    await upstream.message()
    await upstream.send(reply(b"again"))
    assert (await client.message()).body == b"again"
    assert gateway.totals().codes == {200: 2}


async def test_a_replica_that_breaks_off_cuts_the_client(
    gateway: Gateway, lasting: Lasting
) -> None:
    client, upstream = await lasting()
    await upstream.send(SECOND)
    upstream.close()
    await client.expect(SECOND)
    with pytest.raises(Cut):
        await client.upto(END)
    assert gateway.totals().upstream_errors == {("chat-a", "reset"): 1}


async def test_broken_chunks_cut_the_client(gateway: Gateway, lasting: Lasting) -> None:
    client, upstream = await lasting()
    await upstream.send(SECOND)
    await client.expect(SECOND)
    await upstream.send(b"oh no, not hex\r\n")
    with pytest.raises(Cut):
        await client.upto(END)
    await upstream.gone()


async def test_a_client_that_leaves_is_known_to_the_replica(
    gateway: Gateway, lasting: Lasting
) -> None:
    client, upstream = await lasting()
    client.close()
    began = time.monotonic()
    await upstream.gone()
    assert time.monotonic() - began < 2
    assert len(gateway.plane.lane) == 0


async def test_a_stream_that_falls_silent_is_cut_in_time(lasting: Lasting) -> None:
    client, upstream = await lasting(timeouts=Timeouts(idle=0.3))
    await upstream.send(SECOND)
    await client.expect(SECOND)
    with pytest.raises(Cut):
        await client.upto(END)
    await upstream.gone()


async def test_a_client_that_does_not_read_holds_the_replica_back_and_catches_up(
    gateway: Gateway,
) -> None:
    replica = await gateway.serve()
    client = await gateway.unix_client(await gateway.listen_unix())
    upstream = await open_stream(gateway, replica, client)
    await lasts(gateway)
    (connection,) = gateway.server.each()
    assert connection.transport is not None
    event = chunked(b"data: " + b"x" * 5000 + b"\n\n")[:-5]
    upstream.writer.transport.set_write_buffer_limits(high=len(event), low=0)
    sent = 0

    async def taken() -> bool:
        nonlocal sent
        upstream.writer.write(event)
        sent += 1
        try:
            async with asyncio.timeout(1):
                await upstream.writer.drain()
        except TimeoutError:
            return False
        return True

    while await taken():
        assert sent < 5000
    assert len(gateway.plane.lane) == 0
    assert connection.transport.get_write_buffer_size() < 1 << 20
    assert await client.exactly(sent * len(event)) == event * sent
    await lasts(gateway)
    await upstream.send(SECOND, END)
    await client.expect(SECOND + END)


async def test_the_bounds_of_the_connection_hold_again_when_the_stream_has_ended(
    gateway: Gateway, lasting: Lasting
) -> None:
    """Nobody looks at it while the stream lasts."""
    client, upstream = await lasting()
    gateway.limit(keepalive_timeout=0.2)
    await upstream.send(SECOND)
    await client.expect(SECOND)
    await upstream.send(END)
    await client.expect(END)
    assert await client.gone() == b""


async def test_a_client_that_takes_no_byte_of_it_any_more_is_dropped(gateway: Gateway) -> None:
    gateway.limit(write_timeout=0.3)
    replica = await gateway.serve()
    client = await gateway.unix_client(await gateway.listen_unix())
    upstream = await open_stream(gateway, replica, client)
    await lasts(gateway)
    upstream.writer.write(chunked(b"data: " + b"x" * 5000 + b"\n\n")[:-5] * 2000)
    await until(lambda: not gateway.server.connections, "the client is dropped")
    await upstream.gone()
    assert gateway.totals().rejections == {"write_timeout": 1}


async def test_many_at_once_keep_their_order(gateway: Gateway) -> None:
    replica = await gateway.serve()
    pairs = []
    for _ in range(30):
        client = await gateway.client()
        pairs.append((client, await open_stream(gateway, replica, client)))
    await lasts(gateway, 30)
    for number in range(20):
        for _, upstream in pairs:
            upstream.writer.write(chunked(b"data: %d\n\n" % number)[:-5])
    for client, _ in pairs:
        for number in range(20):
            await client.expect(chunked(b"data: %d\n\n" % number)[:-5])
    assert gateway.totals().codes == {}


async def test_a_short_answer_does_not_go_by_the_lane(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(post(b"{}"))
    wire, _ = await replica.request()
    await wire.send(BEGUN + FIRST + END)
    assert (await client.message()).body == b"data: 1\n\n"
    assert len(gateway.plane.lane) == 0


async def test_a_body_of_known_length_does_not(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get())
    wire, _ = await replica.request()
    await wire.send(reply(b"", "Content-Length: 10", framing="none") + b"12345")
    await client.upto(b"\r\n\r\n12345")
    await asyncio.sleep(0.05)
    assert len(gateway.plane.lane) == 0
    await wire.send(b"67890")
    await client.expect(b"67890")


async def test_chunks_for_a_client_of_http_1_0_are_not_for_the_lane(gateway: Gateway) -> None:
    replica = await gateway.serve()
    old, new = await gateway.client(), await gateway.client()
    await old.send(HELLO.replace(b"HTTP/1.1", b"HTTP/1.0"))
    stream = await replica.accept()
    await stream.message()
    await stream.send(BEGUN + FIRST)
    await old.upto(b"data: 1\n\n")
    await open_stream(gateway, replica, new)
    await lasts(gateway)  # and so the older one has been looked at
    await stream.send(SECOND)
    await old.expect(b"data: 2\n\n")
    await stream.send(END)
    assert await old.rest() == b""


async def test_a_client_that_takes_a_new_key_loses_no_event(
    secure: Gateway, authority: Authority, tmp_path: Path
) -> None:
    replica = await secure.serve()
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    argv = ["openssl", "s_client", "-quiet", "-servername", "chat.example", "-CAfile"]
    client = await asyncio.create_subprocess_exec(
        *argv,
        str(tmp_path / "ca.pem"),
        *("-connect", f"127.0.0.1:{secure.tls_port}", "-no_ign_eof"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert client.stdin is not None
    assert client.stdout is not None
    try:
        client.stdin.write(HELLO)
        upstream = await replica.accept()
        await upstream.message()
        await upstream.send(BEGUN + FIRST)
        await asyncio.wait_for(client.stdout.readuntil(FIRST), 30)
        await lasts(secure)
        for number in range(200):
            if number % 10 == 0:
                client.stdin.write(b"K\n")  # both sides get new keys, in the middle of the stream
            event = chunked(b"data: %d\n\n" % number)[:-5]
            await upstream.send(event)
            assert await asyncio.wait_for(client.stdout.readexactly(len(event)), 30) == event
    finally:
        client.kill()
        await client.wait()
