"""A replica behind TCP: resets exist there, and addresses that refuse."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from conversation import Cut, Replica, get, post, reply
from harness import Gateway

from gatewayd.core.model import Replica as Registered
from gatewayd.core.model import TcpAddress


@pytest.fixture
async def replica(gateway: Gateway) -> AsyncIterator[Replica]:
    replica = await gateway.serve()
    server = await asyncio.start_server(replica._connected, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    gateway.change(replicas=(Registered("chat-a", TcpAddress("127.0.0.1", port)),))
    yield replica
    server.close()


async def test_requests_travel_and_connections_are_used_again(
    gateway: Gateway, replica: Replica
) -> None:
    replica.answers = lambda request: reply(request.body or b"-")
    client = await gateway.client()
    for _ in range(3):
        assert (await client.ask(get())).body == b"-"
        assert (await client.ask(post(b"x" * 300_000))).body == b"x" * 300_000
    assert len(replica.wires) == 4  # one for the GETs, and a fresh one for each POST


async def test_a_reset_before_the_answer_is_502(gateway: Gateway, replica: Replica) -> None:
    client = await gateway.client()
    await client.send(post(b"x"))
    wire, _ = await replica.request()
    wire.reset()
    assert (await client.message()).status == 502
    assert gateway.totals().upstream_errors == {("chat-a", "closed"): 1}


@pytest.mark.parametrize("framing", [None, "chunked", "none"])
async def test_a_reset_in_an_answer_is_seen_by_the_client(
    gateway: Gateway, replica: Replica, framing: str | None
) -> None:
    client = await gateway.client()
    await client.send(post(b"x"))
    wire, _ = await replica.request()
    data = reply(b"0123456789", framing=framing)
    await wire.send(data[: data.index(b"0123456789") + 5])
    await client.upto(b"01234")
    wire.reset()
    with pytest.raises(Cut) as cut:
        await client.exactly(6)
    assert cut.value.reset is (framing == "none")
    assert gateway.totals().upstream_errors == {("chat-a", "reset"): 1}


async def test_a_reset_of_an_idle_connection_is_not_felt(
    gateway: Gateway, replica: Replica
) -> None:
    client = await gateway.client()
    await client.send(get())
    wire, _ = await replica.request()
    await wire.send(reply())
    assert (await client.message()).status == 200
    await client.send(get("/again"))
    await wire.message()
    wire.reset()
    wire, request = await replica.request()
    assert request.target == "/again"
    await wire.send(reply())
    assert (await client.message()).status == 200


async def test_a_port_that_refuses_is_502_at_once(gateway: Gateway) -> None:
    await gateway.serve()
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    gateway.change(replicas=(Registered("chat-a", TcpAddress("127.0.0.1", port)),))
    client = await gateway.client()
    started = gateway.loop.time()
    assert (await client.ask(post(b"x"))).status == 502
    assert gateway.loop.time() - started < 2  # not the bound of connecting


async def test_a_client_that_leaves_is_heard_over_tcp(gateway: Gateway, replica: Replica) -> None:
    client = await gateway.client()
    await client.send(post(b"x"))
    wire, _ = await replica.request()
    client.close()
    assert await wire.gone() == b""


async def test_a_name_that_cannot_be_one_is_502(gateway: Gateway) -> None:
    """No question to DNS is made of it; a request hung for it."""
    await gateway.serve()
    gateway.change(replicas=(Registered("chat-a", TcpAddress("a" * 64 + ".example", 80)),))
    client = await gateway.client()
    assert (await client.ask(post(b"x"))).status == 502
    assert gateway.totals().upstream_errors[("chat-a", "connect")] == 2
