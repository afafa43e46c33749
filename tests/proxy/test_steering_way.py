"""The router is asked and the bytes go straight: what router, replica and client each see."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest
from conversation import Message, get, post, reply
from harness import Gateway
from steered import PATH, TRAITS, Steered, headers_of
from waiting import until

from gatewayd.core.model import Log
from gatewayd.core.steering import asking_slot

# Spaces, escapes and order that no parser and printer would give back.
BODY = (
    b'{ "model":"m","messages":[{"role":"user","content":"caf\\u00e9 \xc3\xa9"}] ,\n"user" :"u-1"}'
)
FIELDS = (
    "User-Agent: openai/1 (x)",
    "Content-Type: application/json; charset=utf-8",
    "X-Custom-Thing: a,  b",
    "X-Custom-Thing: second",
    "Cookie: c=1; d=2",
    "Accept: text/event-stream",
    "Idempotency-Key: k",
)


async def test_the_replica_gets_the_clients_own_bytes(steered: Steered) -> None:
    (replica,) = await steered.start(1)
    wire = await steered.client(post(BODY, PATH + "?trace=1", *FIELDS))
    asked = await steered.chosen(replica)
    upstream, request = await replica.request()
    assert request.start == f"POST {PATH}?trace=1 HTTP/1.1"
    assert request.body == BODY
    assert headers_of(request) == [tuple(f.split(": ", 1)) for f in FIELDS]
    assert request["Host"] == "chat.example"
    assert "X-Ask" not in request
    assert steered.load == 1
    assert steered.gateway.load(replica) == 1
    assert steered.bridge.silent  # the router is held while the exchange runs
    answer = reply(b'{"id": 1}', "Content-Type: application/json", "X-Of: replica", "Vary: Cookie")
    await upstream.send(answer)
    got = await wire.message()
    assert got.status == 200
    assert got.body == b'{"id": 1}'
    assert got["X-Of"] == "replica"
    assert got["Vary"] == "Cookie"
    assert got["X-Request-Id"] == request["X-Request-Id"] == asked.asking["X-Request-Id"]
    assert not got.all("X-Gatewayd-Replica")
    await steered.finished(asked)
    await steered.ended(steered=1)
    assert steered.outcomes == {"steered": 1}
    assert steered.gateway.totals().retries == 0


async def test_the_router_gets_the_question_and_no_secret(steered: Steered) -> None:
    (replica,) = await steered.start(1)
    wire = await steered.client(
        post(BODY, PATH, "Authorization: Bearer of-the-client", "X-R-Target: mine", "X-Other: y")
    )
    asked = await steered.chosen(replica)
    question = asked.asking
    assert [name for name, _ in question.fields] == [
        *(":method", ":scheme", ":path", ":authority", "content-type", "authorization"),
        *("x-ask", "x-request-id"),
    ]
    assert (question[":method"], question[":path"]) == ("POST", PATH)
    assert question["Authorization"] == "Bearer of-the-router"
    assert asked.body == BODY
    assert asking_slot(asked.token) == 0
    upstream, request = await replica.request()
    assert request["Authorization"] == "Bearer of-the-client"  # this service needs no token
    await upstream.send(reply())
    assert (await wire.message()).body == b"ok"
    await steered.finished(asked)


async def test_a_client_cannot_ask_in_our_name(steered: Steered) -> None:
    """Neither on a steered path nor on one that the router carries."""
    (replica,) = await steered.start(1)
    wire = await steered.client(post(BODY, PATH, "X-Ask: s0.0.1", "x-ask: s0.0.2"))
    asked = await steered.chosen(replica)
    assert asked.token not in (b"s0.0.2", b"")
    assert len(asked.asking.all("X-Ask")) == 1
    upstream, _ = await replica.request()
    await upstream.send(reply())
    await wire.message()
    await steered.finished(asked)
    await wire.send(post(BODY, "/v1/responses", "X-Ask: s0.0.1", "X-Request-Id: s0.0.1"))
    router, carried = await steered.router.request()
    assert "X-Ask" not in carried
    assert asking_slot(carried["X-Request-Id"].encode()) is None
    await router.send(reply())
    await wire.message()
    await steered.ended(steered=1, through=1)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/responses"),
        ("GET", PATH),
        ("POST", PATH + "/"),
        ("POST", "/v1//chat/completions"),
        ("POST", "/V1/chat/completions"),
        ("DELETE", "/v1/responses/1"),
    ],
)
async def test_what_the_router_cannot_decide_on_goes_through_it(
    steered: Steered, method: str, path: str
) -> None:
    (replica,) = await steered.start(1)
    wire = await steered.client(get(path, "Content-Length: 2", method=method) + b"{}")
    router, request = await steered.router.request()
    assert request.start == f"{method} {path} HTTP/1.1"
    await router.send(reply(b"carried", "X-Gatewayd-Replica: chat-a", "X-R-Error: no"))
    answer = await wire.message(to=method)
    assert answer.body == b"carried"
    assert "X-Gatewayd-Replica" not in answer
    assert "X-R-Error" not in answer
    assert replica.untouched
    await steered.ended(through=1)
    assert steered.outcomes == {}
    assert steered.bridge.silent


@pytest.mark.parametrize("framing", ["chunked", "none"])
async def test_a_stream_passes_event_by_event_and_the_router_waits_for_its_end(
    steered: Steered, framing: str
) -> None:
    (replica,) = await steered.start(1)
    wire = await steered.client(post(BODY, PATH))
    asked = await steered.chosen(replica)
    upstream, _ = await replica.request()
    head = reply(b"", "Content-Type: text/event-stream", framing=framing)
    await upstream.send(head[: head.index(b"\r\n\r\n") + 4])
    begun = await wire.upto(b"\r\n\r\n")
    assert b" 200 " in begun
    assert b"X-Accel-Buffering: no" in begun
    for number in range(5):
        event = b"data: %d\n\n" % number
        framed = b"%x\r\n%b\r\n" % (len(event), event) if framing == "chunked" else event
        await upstream.send(framed)
        await wire.expect(framed)
        assert steered.bridge.silent
        assert steered.load == steered.gateway.load(replica) == 1
    if framing == "chunked":
        await upstream.send(b"0\r\n\r\n")
        await wire.expect(b"0\r\n\r\n")
    else:
        upstream.close()
        assert await wire.rest() == b""
    await steered.finished(asked)
    await steered.ended(steered=1)


async def test_connections_to_the_router_are_used_again(steered: Steered) -> None:
    (replica,) = await steered.start(1)
    replica.answers = reply()
    wire = await steered.client(post(BODY, PATH))
    asked = await steered.chosen(replica)
    await wire.message()
    await steered.finished(asked)
    tokens = {asked.token}
    for _ in range(3):
        await wire.send(post(BODY, PATH))
        asked = await steered.chosen(replica)
        tokens.add(asked.token)
        await wire.message()
        await steered.finished(asked)
    assert len(tokens) == 4
    assert len(steered.router.peers) == 1
    await steered.ended(steered=4)


async def test_answers_of_the_bridge_are_told_apart(steered: Steered) -> None:
    """Fifty questions, answered in another order than they were asked."""
    replicas = await steered.start(3)
    for replica in replicas:
        replica.answers = reply(replica.name.encode(), "Connection: close")
    wires = [await steered.client(post(b'{"n": %d}' % n, PATH)) for n in range(50)]
    asked = [await steered.question() for _ in wires]
    assert len({question.token for question in asked}) == 50
    expected = {}
    for question in reversed(asked):
        number = json.loads(question.body)["n"]
        expected[number] = replicas[number % 3].name
        question.claim(expected[number])
    for number, wire in enumerate(wires):
        assert (await wire.message()).body.decode() == expected[number]
    finished = {await steered.bridge.finished() for _ in wires}
    assert finished == {question.token for question in asked}
    for question in asked:
        question.asking.answer()
    await until(lambda: not steered.load, "the router has nothing in flight")
    await steered.ended(steered=50)


async def test_a_claim_that_is_none_of_ours_is_let_go(steered: Steered) -> None:
    (replica,) = await steered.start(1)
    steered.bridge.claim(b"s0.0.77", replica.name)
    assert await steered.bridge.finished() == b"s0.0.77"
    assert replica.untouched


async def test_the_routing_key_is_what_the_service_names(steered: Steered) -> None:
    (replica,) = await steered.start(1, router={"routing_key_header": "X-Session"})
    replica.answers = reply()
    wire = await steered.client(post(BODY, PATH, "X-Session: alice", "X-R-Key: mallory"))
    asked = await steered.chosen(replica)
    assert asked.asking.all("X-R-Key") == ["alice"]
    await wire.message()
    await steered.finished(asked)
    # Through the router as well, and none without the client's field.
    await wire.send(post(BODY, "/v1/responses", "X-Session: bob"))
    router, carried = await steered.router.request()
    assert carried.all("X-R-Key") == ["bob"]
    await router.send(reply())
    await wire.message()
    await wire.send(post(BODY, "/v1/responses", "X-R-Key: mallory"))
    assert not (await router.message()).all("X-R-Key")
    await router.send(reply())
    await wire.message()


async def test_a_request_without_a_key_gets_one_of_its_own_where_the_router_needs_it(
    steered: Steered, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steered.TRAITS", replace(TRAITS, routing_key_always=True))
    (replica,) = await steered.start(1, router={"routing_key_header": "X-Session"})
    replica.answers = reply()
    wire = await steered.client()
    keys = []
    for field in ("X-Session: alice", "X-Other: x", "X-Other: x", "X-R-Key: mallory"):
        await wire.send(post(BODY, PATH, field))
        asked = await steered.chosen(replica)
        keys += asked.asking.all("X-R-Key")
        await wire.message()
        await steered.finished(asked)
    assert keys[0] == "alice"
    assert len(set(keys)) == 4
    assert "mallory" not in keys


@pytest.mark.parametrize("shown", [True, False])
async def test_debug_headers_name_the_replica(steered: Steered, shown: bool) -> None:
    first, second = await steered.start(2, debug_headers=shown)
    second.answers = reply(b"ok", "X-Gatewayd-Replica: forged")
    wire = await steered.client(post(BODY, PATH))
    asked = await steered.chosen(second)
    answer = await wire.message()
    assert answer.all("X-Gatewayd-Replica") == ([second.name] if shown else [])
    await steered.finished(asked)
    await wire.send(post(BODY, "/v1/responses"))
    router, _ = await steered.router.request()
    await router.send(reply(b"ok", f"X-Gatewayd-Replica: {first.name}"))
    answer = await wire.message()
    assert answer.all("X-Gatewayd-Replica") == ([first.name] if shown else [])
    await wire.send(post(BODY, "/v1/responses"))
    await router.message()
    await router.send(reply(b"the router's own word"))
    answer = await wire.message()
    assert "X-Gatewayd-Replica" not in answer


@pytest.mark.parametrize("mode", ["through", "direct"])
async def test_no_question_in_other_modes(gateway: Gateway, steered: Steered, mode: str) -> None:
    (replica,) = await steered.start(1)
    known = gateway.upstreams["chat"]
    router = known.router if mode == "through" else None
    gateway.upstreams["chat"] = type(known)(known.endpoints, known.balance, router, TRAITS, mode)  # type: ignore[arg-type]
    gateway.publish()
    wire = await steered.client(post(BODY, PATH))
    upstream, request = await (steered.router if router else replica).request()
    assert "X-Ask" not in request
    await upstream.send(reply())
    await wire.message()
    await steered.ended(**{mode: 1})
    assert steered.outcomes == {}


class TestTheAccessLog:
    @pytest.fixture
    def access_log(self, tmp_path: Path) -> Log:
        return Log(format="json", access=str(tmp_path / "access.log"))

    async def test_says_the_way_and_the_replica(self, steered: Steered, tmp_path: Path) -> None:
        first, second = await steered.start(2)
        first.answers = second.answers = reply(b"ok")
        wire = await steered.client(post(BODY, PATH))
        asked = await steered.chosen(second)
        await wire.message()
        await steered.finished(asked)
        await wire.send(post(BODY, PATH))
        asked = await steered.question()
        asked.asking.answer(400)
        await wire.message()
        await wire.send(post(BODY, "/v1/responses"))
        router, _ = await steered.router.request()
        await router.send(reply(b"ok", f"X-Gatewayd-Replica: {first.name}"))
        await wire.message()
        log = tmp_path / "access.log"
        await until(lambda: log.exists() and log.read_text().count("\n") == 3, "three lines")
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        assert [line["via"] for line in lines] == ["steered", "fallback", "through"]
        assert lines[0]["replica"] == second.name
        assert lines[1]["replica"] in (first.name, second.name)
        assert lines[2]["replica"] == first.name


async def test_a_router_that_decides_before_the_body_has_come(steered: Steered) -> None:
    """What follows goes to the replica, whole and once."""
    (replica,) = await steered.start(1)
    sent = [bytes([65 + n]) * 3000 for n in range(8)]
    body = b"".join(sent)
    wire = await steered.client(get(PATH, f"Content-Length: {len(body)}", method="POST") + sent[0])
    asked = await steered.begun()
    await asked.asking.has(3000)
    await wire.send(sent[1])
    await asked.asking.has(6000)
    asked.claim(replica)
    upstream = await replica.accept()
    for piece in sent[2:]:
        await wire.send(piece)
        await asyncio.sleep(0)
    request: Message = await upstream.message()
    assert request.body == body
    await upstream.send(reply(b"got it"))
    assert (await wire.message()).body == b"got it"
    await steered.finished(asked)
    await asked.asking.given_up()
    assert asked.body == sent[0] + sent[1]  # it was never sent the rest
    await steered.ended(steered=1)


async def test_a_chunked_body_without_an_end_yet_is_asked_about_when_it_has_one(
    steered: Steered,
) -> None:
    (replica,) = await steered.start(1)
    replica.answers = reply()
    wire = await steered.client(get(PATH, "Transfer-Encoding: chunked", method="POST"))
    await wire.send(b"3\r\nabc\r\n")
    asked = await steered.begun()
    await asked.asking.has(3)
    assert not asked.asking.ended
    await wire.send(b"2;ext=1\r\nde\r\n", b"0\r\n\r\n")
    assert await asked.asking.whole() == b"abcde"
    asked.claim(replica)
    assert (await wire.message()).body == b"ok"
    assert replica.requests[0].body == b"abcde"
    await steered.finished(asked)


async def test_an_answer_that_the_bridge_begins_is_no_refusal(steered: Steered) -> None:
    """Even when it overtakes the claim: the two come by different ways."""
    (replica,) = await steered.start(1)
    wire = await steered.client(post(BODY, PATH))
    asked = await steered.question()
    asked.asking.begin()
    await asyncio.sleep(0.02)
    assert steered.outcomes == {}
    asked.claim(replica)
    upstream, _ = await replica.request()
    await upstream.send(reply(b"straight"))
    assert (await wire.message()).body == b"straight"
    assert await steered.bridge.finished() == asked.token
    asked.asking.end()
    await until(lambda: not steered.load, "the router has nothing in flight")
    await steered.ended(steered=1)
