"""Several requests on one connection: one after another, none early, none lost."""

from __future__ import annotations

import asyncio

import pytest
from conversation import chunked, get, post, reply
from harness import Gateway
from waiting import until

from gatewayd.core.messages import ServiceTotals


async def test_three_requests_in_one_segment_are_answered_in_order(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get("/1") + post(b"two", "/2") + get("/3"))
    wire, request = await replica.request()
    assert request.target == "/1"
    await wire.nothing()  # nothing is sent ahead
    assert len(replica.wires) == 1
    await wire.send(reply(b"one"))
    assert (await client.message()).body == b"one"
    request = await wire.message()
    assert (request.target, request.body) == ("/2", b"two")
    await wire.send(reply(b"two"))
    assert (await client.message()).body == b"two"
    assert (await wire.message()).target == "/3"
    await wire.send(reply(b"three"))
    assert (await client.message()).body == b"three"
    assert len(replica.wires) == 1


async def test_a_request_that_arrives_while_another_runs_waits(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get("/1"))
    wire, _ = await replica.request()
    await client.send(get("/2"))
    await wire.nothing()
    await wire.send(reply(b"one"))
    assert (await client.message()).body == b"one"
    assert (await wire.message()).target == "/2"
    await wire.send(reply(b"two"))
    assert (await client.message()).body == b"two"


@pytest.mark.parametrize("cut", [1, 10, 30])
async def test_half_a_request_behind_another_waits_for_its_rest(gateway: Gateway, cut: int) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    second = get("/2")
    await client.send(get("/1") + second[:cut])
    wire, _ = await replica.request()
    await wire.send(reply(b"one"))
    assert (await client.message()).body == b"one"
    await client.send(second[cut:])
    assert (await wire.message()).target == "/2"
    await wire.send(reply(b"two"))
    assert (await client.message()).body == b"two"


@pytest.mark.parametrize("count", [31, 32, 33, 64, 65, 200])
async def test_many_requests_in_one_segment_are_all_answered(gateway: Gateway, count: int) -> None:
    """aiohttp's parser stops at 32 messages; what waits in it must not be forgotten."""
    replica = await gateway.serve()
    replica.answers = lambda request: reply(request.target.encode())
    client = await gateway.client()
    await client.send(b"".join(get(f"/{i}") for i in range(count)))
    for i in range(count):
        assert (await client.message()).body == b"/%d" % i


async def test_a_connection_that_saw_many_uploads_still_takes_several_requests_at_once(
    gateway: Gateway,
) -> None:
    """The parser counts a message that was taken before its body was complete as not taken."""
    replica = await gateway.serve()
    replica.answers = lambda request: reply(request.target.encode())
    client = await gateway.client()
    for _ in range(40):
        await client.send(post(b"body")[:-4], b"body")
        assert (await client.message()).status == 200
    await client.send(get("/1") + get("/2") + get("/3"))
    assert [(await client.message()).body for _ in range(3)] == [b"/1", b"/2", b"/3"]


async def test_a_request_behind_a_body_that_came_later_is_found(gateway: Gateway) -> None:
    replica = await gateway.serve()
    replica.answers = lambda request: reply(request.body or b"-")
    client = await gateway.client()
    upload = post(b"0123456789")
    await client.send(upload[:-10], upload[-10:-5], upload[-5:] + get("/2") + get("/3")[:9])
    assert (await client.message()).body == b"0123456789"
    assert (await client.message()).body == b"-"
    await client.send(get("/3")[9:])
    assert (await client.message()).body == b"-"


async def test_what_is_wrong_with_a_request_is_said_in_its_turn(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get("/1") + b"NONSENSE\r\n\r\n" + get("/3"))
    wire, _ = await replica.request()
    await wire.send(reply(b"one"))
    assert (await client.message()).body == b"one"
    answer = await client.message()
    assert (answer.status, answer.closes) == (400, True)
    assert await client.gone() == b""
    assert len(replica.wires) == 1


async def test_many_refusals_in_one_segment_do_not_nest(gateway: Gateway) -> None:
    """Each is answered where the one before it ended: a recursion would run out of stack."""
    await gateway.serve_by(0)
    client = await gateway.client()
    count = 3000
    sending = asyncio.create_task(client.send(get() * count))
    for _ in range(count):
        assert (await client.message()).status == 503
    await sending


async def test_pipelined_bytes_are_held_within_bounds_while_a_request_runs(
    gateway: Gateway,
) -> None:
    replica = await gateway.serve()
    client = await gateway.client(receive_buffer=4096)
    await client.send(get("/slow"))
    wire, _ = await replica.request()
    client.writer.write(get("/more", "A: " + "b" * 1000) * 40_000)
    (connection,) = gateway.server.each()
    await until(lambda: connection._held_size > 0)
    await client.nothing(0.2)
    assert connection._held_size < 1_000_000
    await wire.send(reply(b"slow"))
    assert (await client.message()).body == b"slow"


async def test_what_was_held_back_is_answered_in_the_end(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get("/slow"))
    wire, _ = await replica.request()
    replica.answers = reply(b"more")
    count = 2000
    sending = asyncio.create_task(client.send(get("/more", "A: " + "b" * 1000) * count))
    await until(lambda: any(c._buffer_paused for c in gateway.server.each()))
    await wire.send(reply(b"slow", "Connection: close"))
    assert (await client.message()).body == b"slow"
    for _ in range(count):
        assert (await client.message()).body == b"more"
    await sending


async def test_what_lies_behind_a_request_that_closes_is_not_read(gateway: Gateway) -> None:
    replica = await gateway.serve()
    replica.answers = lambda request: reply(request.target.encode())
    client = await gateway.client()
    await client.send(get("/1") + get("/2", "Connection: close") + get("/3"))
    assert (await client.message()).body == b"/1"
    answer = await client.message()
    assert (answer.body, answer.closes) == (b"/2", True)
    assert await client.gone() == b""
    assert [r.target for r in replica.requests] == ["/1", "/2"]


async def test_an_answer_is_not_lost_to_what_lies_unread_behind_its_request(
    gateway: Gateway,
) -> None:
    """Closing a socket with unread bytes resets it, and a reset overtakes what was answered."""
    replica = await gateway.serve()
    wire = None
    for _ in range(10):
        client = await gateway.client()
        await client.send(get("/1", "Connection: close"))
        wire = wire or await replica.accept()
        await wire.message()
        client.writer.write(get("/more", "A: " + "b" * 1000) * 1000)
        await until(lambda: any(c._buffer_paused for c in gateway.server.each()))
        await wire.send(reply(b"x" * 100_000))
        answer = await client.message()
        assert (answer.body, answer.closes) == (b"x" * 100_000, True)
        client.close()
        await until(lambda: not gateway.server.connections)


async def test_a_body_and_a_request_behind_it_in_one_segment(gateway: Gateway) -> None:
    replica = await gateway.serve()
    replica.answers = lambda request: reply(request.body or b"-")
    client = await gateway.client()
    upload = get("/1", "Transfer-Encoding: chunked", method="PUT") + chunked(b"ab", b"cd")
    await client.send(upload + upload[:70], upload[70:] + get("/3"))
    bodies = [(await client.message()).body for _ in range(3)]
    assert bodies == [b"abcd", b"abcd", b"-"]


async def test_a_body_that_fills_the_readers_buffer_in_one_read_is_not_lost(
    gateway: Gateway,
) -> None:
    """The re-entrancy trap: StreamReader.read_nowait resumes reading, which calls
    data_received(b"") in the middle of the running request."""
    replica = await gateway.serve()
    replica.answers = lambda request: reply(b"%d" % len(request.body))
    client = await gateway.client()
    for size in (200_000, 524_288, 600_000, 1_100_000):
        await client.send(post(b"x" * size) + get("/next"))
        assert (await client.message()).body == b"%d" % size
        assert (await client.message()).body == b"0"


async def test_keep_alive_goes_on_after_an_answer_that_did_not_wait_for_the_body(
    gateway: Gateway,
) -> None:
    """The whole upload is here, larger than the reader's buffer, and the replica takes none of it:
    what was paused for it has to be resumed for the next request."""
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get("/1", "Expect: 100-continue", "Content-Length: 700000", method="PUT"))
    wire = await replica.accept()
    await client.upto(b"\r\n\r\n")
    await wire.upto(b"\r\n\r\n")
    client.writer.write(b"x" * 700_000)
    await until(lambda: wire.reader._buffer)
    await wire.send(reply(b"early"))
    answer = await client.message()
    assert answer.body == b"early"
    if not answer.closes:
        replica.answers = reply(b"on")
        assert (await client.ask(get("/2"))).body == b"on"


async def test_bytes_and_counts_belong_to_their_own_request(gateway: Gateway) -> None:
    replica = await gateway.serve()
    replica.answers = lambda request: reply(request.body * 2)
    client = await gateway.client()
    await client.send(post(b"a" * 10) + post(b"b" * 20))
    assert (await client.message()).body == b"a" * 20
    assert (await client.message()).body == b"b" * 40
    totals: ServiceTotals = gateway.totals()
    assert (totals.bytes_in, totals.bytes_out) == (30, 60)
