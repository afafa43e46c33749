"""Bodies under a question to the router: whatever becomes of it, the replica gets the client's
bytes whole and once, and nothing waits for longer than the decision needs."""

from __future__ import annotations

import asyncio
import random

import pytest
from conversation import Message, Wire, get, post, reply
from steered import PATH, Steered
from waiting import until

LIMIT = 100_000


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)  # noqa: S311


def pieces(body: bytes, count: int = 5) -> list[bytes]:
    size = -(-len(body) // count)
    return [body[at : at + size] for at in range(0, len(body), size)]


class Upload:
    """A client that sends its body piece by piece, in either framing."""

    def __init__(self, wire: Wire, body: bytes, framing: str, *fields: str) -> None:
        self.wire = wire
        self.chunked = framing == "chunked"
        length = "Transfer-Encoding: chunked" if self.chunked else f"Content-Length: {len(body)}"
        self.head = get(PATH, length, *fields, method="POST")
        self.left = pieces(body)

    async def begin(self) -> None:
        await self.wire.send(self.head)

    async def go_on(self, count: int = 1) -> None:
        for _ in range(count):
            piece = self.left.pop(0)
            await self.wire.send(b"%x\r\n%b\r\n" % (len(piece), piece) if self.chunked else piece)

    async def end(self) -> None:
        await self.go_on(len(self.left))
        if self.chunked:
            await self.wire.send(b"0\r\n\r\n")


async def upload(steered: Steered, body: bytes, framing: str, *fields: str) -> Upload:
    started = Upload(await steered.client(), body, framing, *fields)
    await started.begin()
    return started


FRAMINGS = pytest.mark.parametrize("framing", ["length", "chunked"])


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


# --- the client's time is its own


async def test_a_slow_client_is_no_slow_router(steered: Steered) -> None:
    (replica,) = await steered.start(1, router={"steer_timeout": 0.15})
    replica.answers = reply()
    body = noise(5_000)
    client = await upload(steered, body, "length")
    asked = await steered.begun()
    while len(client.left) > 1:
        await client.go_on()
        await asyncio.sleep(0.1)
    # Meanwhile others are steered.
    other = await steered.client(post(b"{}", PATH))
    quick = await steered.chosen(replica)
    await other.message()
    assert await steered.bridge.finished() == quick.token
    quick.asking.answer()
    await client.end()
    assert await asked.asking.whole() == body
    asked.claim(replica)
    assert (await client.wire.message()).status == 200
    assert replica.requests[-1].body == body
    assert steered.outcomes == {"steered": 2}


async def test_from_its_last_byte_on_it_is_the_routers_time(steered: Steered) -> None:
    (replica,) = await steered.start(1, router={"steer_timeout": 0.15})
    replica.answers = reply()
    body = noise(5_000)
    client = await upload(steered, body, "length")
    await steered.begun()
    await client.go_on(2)
    await asyncio.sleep(0.25)
    assert steered.outcomes == {}
    await client.end()
    assert (await client.wire.message()).status == 200
    assert replica.requests[0].body == body
    assert steered.outcomes == {"timeout": 1}


async def test_a_client_that_stops_in_the_middle_of_its_body(steered: Steered) -> None:
    steered.gateway.limit(body_idle_timeout=0.1)
    (replica,) = await steered.start(1)
    client = await upload(steered, noise(5_000), "length")
    asked = await steered.begun()
    await client.go_on()
    answer = await client.wire.message()
    assert answer.status == 408
    await asked.asking.given_up()
    assert replica.untouched
    assert not steered.load
    assert steered.outcomes == {"abandoned": 1}


@FRAMINGS
async def test_a_client_that_leaves_in_the_middle_of_its_body(
    steered: Steered, framing: str
) -> None:
    (replica,) = await steered.start(1)
    client = await upload(steered, noise(5_000), framing)
    asked = await steered.begun()
    await client.go_on(2)
    client.wire.close()
    async with asyncio.timeout(0.2):
        await asked.asking.given_up()
    assert replica.untouched
    assert not steered.load
    assert steered.outcomes == {"abandoned": 1}


async def test_a_body_that_breaks_off_its_framing(steered: Steered) -> None:
    (replica,) = await steered.start(1)
    client = await upload(steered, noise(5_000), "chunked")
    asked = await steered.begun()
    await client.go_on()
    await client.wire.send(b"no size\r\n")
    assert (await client.wire.message()).status == 400
    await asked.asking.given_up()
    assert replica.untouched
    assert steered.outcomes == {"abandoned": 1}
    assert not steered.load


# --- the question ends while the body arrives


@FRAMINGS
@pytest.mark.parametrize("how", ["refuses", "dies", "resets", "loses the bridge", "claims"])
async def test_the_question_ends_in_the_middle_of_the_body(
    steered: Steered, framing: str, how: str
) -> None:
    (replica,) = await steered.start(1)
    body = noise(90_000)
    client = await upload(steered, body, framing)
    asked = await steered.begun()
    await client.go_on(2)
    await asyncio.sleep(0.01)
    match how:
        case "refuses":
            asked.asking.answer(413)
        case "dies":
            asked.asking.peer.die()
        case "resets":
            asked.asking.reset()
        case "loses the bridge":
            steered.bridge.close()
        case "claims":
            asked.claim(replica)
    upstream = await replica.accept()
    await client.end()
    request = await upstream.message()
    assert request.body == body
    await upstream.send(reply())
    assert (await client.wire.message()).status == 200
    outcome = {
        "refuses": "refused",
        "loses the bridge": "bridge_down",
        "claims": "steered",
    }.get(how, "router_down")
    assert steered.outcomes == {outcome: 1}
    if how == "claims":
        assert await steered.bridge.finished() == asked.token
        asked.asking.answer()
    await until(lambda: not steered.load, "the router has nothing in flight")
    assert steered.gateway.totals().bytes_in == len(body)


async def test_a_router_that_does_not_read(steered: Steered) -> None:
    """What waits for it is bounded, and its slowness counts as such."""
    limit = 4 << 20
    (replica,) = await steered.start(1, router={"steer_timeout": 0.2, "steer_body_limit": limit})
    replica.answers = reply()
    body = noise(3 << 20)
    client = await upload(steered, body, "length")
    await steered.begun()  # whose test end takes 64 KiB unasked
    async with asyncio.TaskGroup() as group:
        group.create_task(client.end())
        group.create_task(client.wire.message())
    assert replica.requests[0].body == body
    assert steered.outcomes == {"timeout": 1}


async def test_a_refused_replica_is_asked_about_again_with_the_whole_body(
    steered: Steered,
) -> None:
    first, second = await steered.start(2)
    second.answers = reply()
    first.stop_listening()
    body = noise(60_000)
    client = await upload(steered, body, "chunked")
    asked = await steered.begun()
    await client.end()
    await asked.asking.whole()
    asked.claim(first)
    await steered.finished(asked)
    steered.publish()
    again = await steered.chosen(second)
    assert again.body == asked.body == body
    assert (await client.wire.message()).status == 200
    assert second.requests[0].body == body
    await steered.finished(again)


async def test_requests_that_wait_behind_it_on_the_connection(steered: Steered) -> None:
    """Pipelined ones; their bytes are not taken for the body's."""
    (replica,) = await steered.start(1)
    replica.answers = lambda request: reply(request.body)
    wire = await steered.client(post(b"first", PATH) + post(b"second!", PATH) + post(b"3", PATH))
    for body in (b"first", b"second!", b"3"):
        asked = await steered.chosen(replica)
        assert asked.body == body
        assert (await wire.message()).body == body
        assert await steered.bridge.finished() == asked.token
        asked.asking.answer()
    await until(lambda: not steered.load, "the router has nothing in flight")
    await steered.ended(steered=3)
