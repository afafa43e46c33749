"""The edge's own bounds, each with a limit so small that it is met soon."""

from __future__ import annotations

import asyncio
import time

import pytest
from conversation import Cut, Wire, get, open_tcp, post, reply
from harness import Gateway
from waiting import until


async def refused(client: Wire, status: int) -> None:
    answer = await client.message()
    assert answer.status == status
    assert answer.closes
    assert await client.gone() == b""


# --- sizes of the head


@pytest.mark.parametrize("slowly", [False, True], ids=["at once", "in pieces"])
async def test_a_request_line_that_is_too_long_is_414(gateway: Gateway, slowly: bool) -> None:
    gateway.limit(request_line_size=200)
    replica = await gateway.serve()
    client = await gateway.client()
    request = get("/" + "a" * 300)
    await client.send(*([request[i : i + 50] for i in range(0, 350, 50)] if slowly else [request]))
    await refused(client, 414)
    assert replica.untouched


async def test_a_request_line_of_the_default_bound_passes(gateway: Gateway) -> None:
    replica = await gateway.serve()
    replica.answers = reply()
    client = await gateway.client()
    assert (await client.ask(get("/" + "a" * 16_000))).status == 200
    client = await gateway.client()
    await client.send(get("/" + "a" * 17_000))
    await refused(client, 414)


@pytest.mark.parametrize("slowly", [False, True], ids=["at once", "in pieces"])
@pytest.mark.parametrize("fields", [["A: " + "b" * 2000], ["A: " + "b" * 100] * 20])
async def test_a_head_that_is_too_large_is_431(
    gateway: Gateway, slowly: bool, fields: list[str]
) -> None:
    gateway.limit(header_size=1000)
    replica = await gateway.serve()
    client = await gateway.client()
    request = get("/", *fields)
    size = 100 if slowly else len(request)
    await client.send(*[request[i : i + size] for i in range(0, len(request), size)])
    await refused(client, 431)
    assert replica.untouched


@pytest.mark.parametrize("pipelined", [False, True])
async def test_the_bound_holds_for_every_head_of_a_connection(
    gateway: Gateway, pipelined: bool
) -> None:
    gateway.limit(header_size=1000)
    replica = await gateway.serve()
    replica.answers = reply()
    client = await gateway.client()
    large = get("/large", *["A: " + "b" * 100] * 20)
    if pipelined:
        await client.send(get("/1") + get("/2") + large)
        assert (await client.message()).status == 200
    else:
        await client.send(get("/1"))
        assert (await client.message()).status == 200
        await client.send(get("/2"))
    assert (await client.message()).status == 200
    if not pipelined:
        await client.send(large)
    await refused(client, 431)
    assert "/large" not in {r.target for r in replica.requests}


async def test_a_head_that_is_not_too_large_passes_in_any_company(gateway: Gateway) -> None:
    gateway.limit(header_size=1000)
    replica = await gateway.serve()
    replica.answers = reply()
    client = await gateway.client()
    # The body is no part of the head, nor are other requests.
    await client.send(post(b"x" * 5000) + get("/2", "A: " + "b" * 500) * 3)
    for _ in range(4):
        assert (await client.message()).status == 200


async def test_more_headers_than_allowed_are_431(gateway: Gateway) -> None:
    replica = await gateway.serve()
    replica.answers = reply()
    client = await gateway.client()
    assert (await client.ask(get("/", *[f"A{i}: b" for i in range(99)]))).status == 200
    await client.send(get("/", *[f"A{i}: b" for i in range(100)]))
    await refused(client, 431)


async def test_trailers_of_an_upload_are_bounded_too(gateway: Gateway) -> None:
    gateway.limit(header_size=1000)
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get("/", "Transfer-Encoding: chunked", method="POST"))
    wire = await replica.accept()
    await client.send(b"2\r\nok\r\n0\r\nA: " + b"b" * 5000)
    answer = await client.message()
    assert answer.status in (400, 431)
    assert b"0\r\n" not in (await wire.gone()).split(b"\r\n\r\n", 1)[1]


# --- time of the head


async def test_a_head_has_one_deadline_however_it_drips(gateway: Gateway) -> None:
    gateway.limit(header_timeout=0.15)
    replica = await gateway.serve()
    client = await gateway.client()
    started = time.monotonic()
    answered = asyncio.create_task(client.message())
    for byte in get("/slow", "X-Padding: " + "x" * 500):
        if answered.done():
            break
        await client.send(bytes([byte]))
        await asyncio.sleep(0.01)
    answer = await answered
    assert answer.status == 408
    assert answer.closes
    assert 0.1 < time.monotonic() - started < 4.0  # 5 s, had each byte begun it anew
    assert replica.untouched


async def test_the_next_head_has_a_deadline_of_its_own(gateway: Gateway) -> None:
    gateway.limit(header_timeout=0.1)
    replica = await gateway.serve()
    replica.answers = reply()
    client = await gateway.client()
    assert (await client.ask(get())).status == 200
    await client.send(b"GET /")
    await refused(client, 408)


async def test_a_head_whose_start_came_with_the_request_before_has_a_deadline(
    gateway: Gateway,
) -> None:
    gateway.limit(header_timeout=0.1)
    replica = await gateway.serve()
    replica.answers = reply()
    client = await gateway.client()
    await client.send(get() + b"GET /ha")
    assert (await client.message()).status == 200
    await client.send(b"lf")
    await refused(client, 408)


async def test_a_head_that_came_in_pieces_leaves_no_deadline_behind(gateway: Gateway) -> None:
    gateway.limit(header_timeout=0.1)
    replica = await gateway.serve()
    replica.answers = reply()
    client = await gateway.client()
    await client.send(get()[:10])
    await until(lambda: any(c._head_since for c in gateway.server.each()))
    assert (await client.ask(get()[10:])).status == 200
    await client.nothing(0.25)
    assert (await client.ask(get())).status == 200


async def test_a_slow_replica_is_not_a_slow_head(gateway: Gateway) -> None:
    gateway.limit(header_timeout=0.05, keepalive_timeout=0.05)
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get())
    wire, _ = await replica.request()
    await client.nothing(0.2)
    await wire.send(reply())
    assert (await client.message()).status == 200


# --- idle connections


async def test_an_idle_connection_is_closed_quietly(gateway: Gateway) -> None:
    gateway.limit(keepalive_timeout=0.1)
    replica = await gateway.serve()
    replica.answers = reply()
    silent, used = await gateway.client(), await gateway.client()
    assert (await used.ask(get())).status == 200
    assert await silent.rest() == b""
    assert await used.rest() == b""


# --- bodies


@pytest.mark.parametrize(
    "start",
    [
        post(b"0123456789")[:-5],
        get("/", "Transfer-Encoding: chunked", method="POST") + b"5\r\n01",
    ],
)
async def test_a_body_that_stops_is_408(gateway: Gateway, start: bytes) -> None:
    gateway.limit(body_idle_timeout=0.1)
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(start)
    wire = await replica.accept()
    await refused(client, 408)
    with pytest.raises(Cut):
        await wire.message()
    assert gateway.totals().codes == {408: 1}


async def test_a_body_that_trickles_is_not_idle(gateway: Gateway) -> None:
    gateway.limit(body_idle_timeout=0.15)
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(post(b"x" * 8)[:-8])
    wire = await replica.accept()
    for _ in range(8):
        await asyncio.sleep(0.04)
        await client.send(b"x")
    assert (await wire.message()).body == b"x" * 8
    await wire.send(reply())
    assert (await client.message()).status == 200


# --- clients that do not read


async def test_a_client_that_takes_no_byte_is_dropped(gateway: Gateway) -> None:
    gateway.limit(write_timeout=0.2)
    replica = await gateway.serve()
    client = await gateway.client(receive_buffer=4096)
    await client.send(get())
    wire, _ = await replica.request()
    wire.writer.write(reply(b"", "Content-Length: 100000000", framing="none") + b"x" * 40_000_000)
    await until(lambda: not gateway.server.connections, "the client is dropped")
    await wire.gone()
    assert gateway.totals().rejections == {"write_timeout": 1}


async def test_a_client_that_reads_slowly_is_not_dropped(gateway: Gateway) -> None:
    gateway.limit(write_timeout=0.5)
    replica = await gateway.serve()
    client = await gateway.client(receive_buffer=4096)
    await client.send(get())
    wire, _ = await replica.request()
    size = 12_000_000
    wire.writer.write(reply(b"", f"Content-Length: {size}", framing="none") + b"x" * size)
    await client.upto(b"\r\n\r\n")
    started = time.monotonic()
    while time.monotonic() - started < 1.0:
        size -= len(await client.exactly(200_000))
        await asyncio.sleep(0.03)
    assert await client.exactly(size)


async def test_an_answer_of_ours_that_nobody_takes_ends_too(gateway: Gateway) -> None:
    gateway.limit(write_timeout=0.1)
    await gateway.serve_by(0)
    client = await gateway.client(receive_buffer=4096)
    # Answers to all of them would fill any buffer; the client reads none.
    client.writer.write(get() * 200_000)
    await until(lambda: not gateway.server.connections, "the client is dropped")


# --- connections


async def test_connections_of_one_address_are_bounded(gateway: Gateway) -> None:
    gateway.limit(connections_per_ip=2)
    replica = await gateway.serve()
    replica.answers = reply()
    first, second = await gateway.client(), await gateway.client()
    assert (await first.ask(get())).status == 200
    assert (await second.ask(get())).status == 200
    third = await open_tcp(gateway.port)
    gateway.clients.append(third)
    assert await third.gone() == b""
    first.close()
    await until(lambda: len(gateway.server.connections) == 1)
    fourth = await gateway.client()
    assert (await fourth.ask(get())).status == 200


async def test_the_first_client_after_a_rest_has_its_bounds_too(gateway: Gateway) -> None:
    """It stirs the sweeper, which looks at nothing while nobody is there."""
    gateway.limit(header_timeout=0.05, keepalive_timeout=0.1)
    await gateway.serve()
    await until(lambda: gateway.plane.sweeper.resting)
    slow = await gateway.client()
    await slow.send(b"GET / HT")
    assert (await slow.message()).status == 408
    await slow.gone()
    slow.close()
    await until(lambda: gateway.plane.sweeper.resting)
    silent = await gateway.client()
    await silent.gone()
    silent.close()


async def test_each_refusal_of_a_bound_is_named_in_the_metrics(gateway: Gateway) -> None:
    gateway.limit(
        request_line_size=200,
        header_size=1000,
        header_timeout=0.05,
        keepalive_timeout=5.0,
        connections_per_ip=1,
    )
    await gateway.serve()

    async def one(request: bytes) -> None:
        client = await gateway.client()
        await client.send(request)
        await client.gone()
        client.close()
        await until(lambda: not gateway.server.connections)

    await one(get("/" + "a" * 300))
    await one(get("/", "A: " + "b" * 2000))
    await one(b"GET / HT")
    await one(b"nonsense\r\n\r\n")
    await one(get("/", "Host: twice"))
    first, second = await gateway.client(), await gateway.client()
    await second.gone()
    first.close()
    assert gateway.totals("").rejections == {
        "request_line": 1,
        "header_size": 1,
        "header_timeout": 1,
        "malformed": 2,
        "connections": 1,
    }


async def test_a_body_that_stops_is_named_in_the_metrics(gateway: Gateway) -> None:
    gateway.limit(body_idle_timeout=0.05)
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(post(b"0123456789")[:-5])
    await replica.accept()
    await refused(client, 408)
    assert gateway.totals().rejections == {"body_timeout": 1}
