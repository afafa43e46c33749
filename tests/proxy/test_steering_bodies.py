"""Bodies under a question to the router: whatever becomes of it, the replica gets the client's
bytes whole and once, and nothing waits for longer than the decision needs."""

from __future__ import annotations

import asyncio

import pytest
from conversation import Message, get, post, reply
from steered import PATH, Steered
from uploading import FRAMINGS, LIMIT, Upload, noise, upload


@FRAMINGS
@pytest.mark.parametrize("size", [1, 5_000, 90_000])
async def test_a_body_that_arrives_in_pieces(steered: Steered, framing: str, size: int) -> None:
    (replica,) = await steered.start(1, router={"steer_body_limit": LIMIT})
    replica.answers = reply()
    body = noise(size)
    client = await upload(steered, body, framing)
    asked = await steered.begun()
    await client.go_on()
    await asyncio.sleep(0.01)
    assert replica.untouched
    await client.end()
    assert await asked.asking.whole() == body
    asked.claim(replica)
    assert (await client.wire.message()).status == 200
    (request,) = replica.requests
    assert request.body == body
    if framing == "length":
        assert request["Content-Length"] == str(size)
    await steered.finished(asked)
    await steered.ended(steered=1)
    assert steered.gateway.totals().bytes_in == size


@FRAMINGS
async def test_a_body_that_is_all_there(steered: Steered, framing: str) -> None:
    (replica,) = await steered.start(1)
    replica.answers = reply()
    body = noise(3_000)
    client = Upload(await steered.client(), body, framing)
    whole = client.head + (b"bb8\r\n" + body + b"\r\n0\r\n\r\n" if client.chunked else body)
    await client.wire.send(whole)
    asked = await steered.chosen(replica)
    assert asked.body == body
    await client.wire.message()
    assert replica.requests[0].body == body
    await steered.finished(asked)


@pytest.mark.parametrize("field", ["Content-Length: 0", "X-No: body"])
async def test_no_body(steered: Steered, field: str) -> None:
    (replica,) = await steered.start(1)
    replica.answers = reply()
    wire = await steered.client(get(PATH, field, method="POST"))
    asked = await steered.chosen(replica)
    assert (await wire.message()).status == 200
    assert replica.requests[0].body == b""
    await steered.finished(asked)


# --- large ones


async def test_a_body_too_large_by_its_own_word_is_not_asked_about(steered: Steered) -> None:
    (replica,) = await steered.start(1, router={"steer_body_limit": LIMIT})
    body = noise(LIMIT + 1)
    client = await upload(steered, body, "length")
    upstream = await replica.accept()  # before a byte of the body: nothing is held
    await client.go_on()
    await client.end()
    request = await upstream.message()
    assert request.body == body
    await upstream.send(reply())
    await client.wire.message()
    await steered.ended(fallback=1)
    assert steered.outcomes == {"body_limit": 1}
    assert steered.router.untouched


async def test_a_body_at_the_limit_is_asked_about(steered: Steered) -> None:
    (replica,) = await steered.start(1, router={"steer_body_limit": LIMIT})
    replica.answers = reply()
    body = noise(LIMIT)
    wire = await steered.client(post(body, PATH))
    asked = await steered.chosen(replica)
    await wire.message()
    assert replica.requests[0].body == body
    await steered.finished(asked)


async def test_a_body_that_grows_too_large_as_it_arrives(steered: Steered) -> None:
    (replica,) = await steered.start(1, router={"steer_body_limit": LIMIT})
    body = noise(4 * LIMIT)
    client = await upload(steered, body, "chunked")
    asked = await steered.begun()
    await client.go_on()
    assert replica.untouched
    await client.go_on()
    upstream = await replica.accept()  # the rest need not be there for it
    await asked.asking.given_up()
    assert not steered.load
    await client.end()
    request = await upstream.message()
    assert request.body == body
    await upstream.send(reply())
    assert (await client.wire.message()).status == 200
    await steered.ended(fallback=1)
    assert steered.outcomes == {"body_limit": 1}
    assert steered.gateway.totals().bytes_in == len(body)


async def test_a_chunked_body_that_is_all_there_and_too_large(steered: Steered) -> None:
    """The connection to the router is not used up by it."""
    (replica,) = await steered.start(1, router={"steer_body_limit": 1000})
    replica.answers = reply()
    wire = await steered.client(post(b"x", PATH))
    asked = await steered.chosen(replica)
    await wire.message()
    await steered.finished(asked)
    body = noise(3_000)
    head = get(PATH, "Transfer-Encoding: chunked", method="POST")
    await wire.send(head + b"bb8\r\n" + body + b"\r\n0\r\n\r\n")
    await wire.message()
    assert replica.requests[1].body == body
    assert steered.outcomes == {"steered": 1, "body_limit": 1}
    await wire.send(post(b"y", PATH))
    asked = await steered.chosen(replica)
    await wire.message()
    await steered.finished(asked)
    await steered.ended(steered=2, fallback=1)


async def test_a_body_that_the_service_refuses(steered: Steered) -> None:
    (replica,) = await steered.start(1, client_max_body_size=50_000)
    client = await upload(steered, noise(200_000), "chunked")
    asked = await steered.begun()
    await client.end()
    assert (await client.wire.message()).status == 413
    await asked.asking.given_up()
    assert replica.untouched
    assert steered.outcomes == {"abandoned": 1}
    assert steered.gateway.totals().rejections == {"body_size": 1}
    assert not steered.load


async def test_many_large_bodies_at_once(steered: Steered) -> None:
    (replica,) = await steered.start(1, router={"steer_body_limit": 1 << 20})
    seen: list[bytes] = []

    def answer(request: Message) -> bytes:
        seen.append(request.body)
        return reply(b"%d" % len(request.body), "Connection: close")

    replica.answers = answer
    bodies = [noise(200_000 + n) for n in range(10)]

    async def one(body: bytes) -> None:
        client = await upload(steered, body, "length")
        await client.end()
        assert (await client.wire.message()).body == b"%d" % len(body)

    async def answers() -> None:
        for _ in bodies:
            await steered.chosen(replica)

    async with asyncio.TaskGroup() as group:
        group.create_task(answers())
        for body in bodies:
            group.create_task(one(body))
    assert sorted(seen) == sorted(bodies)
    await steered.ended(steered=10)


# --- Expect: 100-continue


@FRAMINGS
@pytest.mark.parametrize("fate", ["steered", "refused", "too large"])
async def test_a_client_that_waits_for_a_go_ahead(
    steered: Steered, framing: str, fate: str
) -> None:
    limit = 1000 if fate == "too large" else LIMIT
    (replica,) = await steered.start(1, router={"steer_body_limit": limit})
    replica.answers = reply()
    body = noise(20_000)
    client = await upload(steered, body, framing, "Expect: 100-continue")
    await client.wire.expect(b"HTTP/1.1 100 Continue\r\n\r\n")
    await client.end()
    if fate != "too large" or framing == "chunked":
        asked = await steered.begun()
        assert not asked.asking.all("Expect")
        if fate == "refused":
            asked.asking.answer(503)
        elif fate == "steered":
            asked.claim(replica)
    answer = await client.wire.message()
    assert answer.status == 200  # and no second go-ahead before it
    (request,) = replica.requests
    assert request.body == body
    assert "Expect" not in request
    assert sum(steered.outcomes.values()) == 1
