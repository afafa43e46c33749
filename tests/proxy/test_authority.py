"""Asking somebody else about a token: what its answers mean, how long they are kept."""

from __future__ import annotations

import logging

import pytest
from asking import BEARER, ask
from conversation import Replica, get, post, reply
from harness import Gateway
from waiting import until

from gatewayd.core.model import HttpAuth, UnixAddress


async def guarded(gateway: Gateway, **auth: object) -> tuple[Replica, Replica]:
    """(authority, replica); the authority says yes until it is told otherwise."""
    authority = await gateway.add_replica("authority")
    authority.answers = reply()
    gateway.auth = HttpAuth(UnixAddress(str(authority.path)), "/check?a=1", **auth)  # type: ignore[arg-type]
    replica = await gateway.serve(auth=True)
    replica.answers = reply(b"in")
    return authority, replica


async def test_the_question_says_who_wants_what(gateway: Gateway) -> None:
    authority, replica = await guarded(gateway)
    client = await gateway.client()
    answer = await client.ask(post(b"{}", "/v1/x?y=1", "Authorization: bearer sesame"))
    assert answer.status == 200
    (question,) = authority.requests
    assert question.start == "GET /check?a=1 HTTP/1.1"
    assert question["Authorization"] == "Bearer sesame"
    assert question["X-Original-Method"] == "POST"
    assert question["X-Original-URI"] == "/v1/x?y=1"
    assert question["X-Original-Host"] == "chat.example"
    assert question["X-Gatewayd-Service"] == "main/chat"
    assert "Authorization" not in replica.requests[0]


@pytest.mark.parametrize(
    ("status", "given"),
    [
        ("200 OK", 200),
        ("204 No Content", 200),
        ("299 Fine", 200),
        ("401 Unauthorized", 403),
        ("403 Forbidden", 403),
        ("302 Found", 503),
        ("400 Bad Request", 503),
        ("404 Not Found", 503),
        ("500 Oops", 503),
        ("503 Busy", 503),
    ],
)
async def test_its_status_is_its_word(gateway: Gateway, status: str, given: int) -> None:
    authority, replica = await guarded(gateway)
    authority.answers = reply(b"", "Location: /elsewhere", status=status)
    answer = await ask(gateway)
    assert answer.status == given
    assert bool(replica.requests) is (given == 200)
    if given == 503:
        assert int(answer["Retry-After"]) > 0
        assert b"auth_unavailable" in answer.body
    assert len(authority.requests) == 1


async def test_without_a_token_nobody_is_asked(gateway: Gateway) -> None:
    authority, _ = await guarded(gateway)
    answer = await ask(gateway, "Authorization: Basic eA==")
    assert answer.status == 401
    assert answer["WWW-Authenticate"] == "Bearer"
    assert authority.untouched


@pytest.mark.parametrize("status", ["200 OK", "403 Forbidden"])
async def test_yes_and_no_are_kept_per_service_and_token(gateway: Gateway, status: str) -> None:
    authority, _ = await guarded(gateway)
    other = await gateway.serve("other", auth=True)
    other.answers = reply()
    authority.answers = reply(b"", status=status)
    for _ in range(3):
        await ask(gateway)
    assert len(authority.requests) == 1
    await ask(gateway, "Authorization: Bearer another")
    assert len(authority.requests) == 2
    client = await gateway.client()
    await client.ask(get("/", BEARER, host="other.example"))
    assert len(authority.requests) == 3


async def test_an_answer_is_asked_for_again_when_it_is_old(gateway: Gateway) -> None:
    authority, _ = await guarded(gateway, cache=1.0)
    assert (await ask(gateway)).status == 200
    authority.answers = reply(b"", status="403 Forbidden")
    assert (await ask(gateway)).status == 200

    async def refused() -> bool:
        return (await ask(gateway)).status == 403

    await until(refused)


async def test_many_at_once_ask_once(gateway: Gateway) -> None:
    authority, replica = await guarded(gateway)
    authority.answers = None
    clients = [await gateway.client() for _ in range(20)]
    for client in clients:
        await client.send(get("/", BEARER))
    wire, _ = await authority.request()
    await wire.nothing()
    clients.pop().close()  # who leaves takes nobody else's question away
    await wire.send(reply())
    for client in clients:
        assert (await client.message()).status == 200
    assert len(authority.wires) == 1
    assert len(replica.requests) == 19


async def test_a_good_token_stays_good_while_the_authority_is_down(gateway: Gateway) -> None:
    authority, _ = await guarded(gateway, cache=0.0, stale_if_error=2.0)
    assert (await ask(gateway)).status == 200
    authority.answers = reply(b"", status="500 Oops")
    assert (await ask(gateway)).status == 200
    await authority.stop()
    assert (await ask(gateway)).status == 200
    assert (await ask(gateway, "Authorization: Bearer unknown")).status == 503

    async def refused() -> bool:
        return (await ask(gateway)).status == 503

    await until(refused)


async def test_a_bad_token_does_not_become_good_by_that(gateway: Gateway) -> None:
    authority, replica = await guarded(gateway, cache=0.0)
    authority.answers = reply(b"", status="403 Forbidden")
    assert (await ask(gateway)).status == 403
    await authority.stop()
    assert (await ask(gateway)).status == 503
    assert not replica.requests


async def test_an_authority_that_hangs_costs_its_bound(gateway: Gateway) -> None:
    authority, _ = await guarded(gateway, timeout=0.1)
    authority.answers = None
    started = gateway.loop.time()
    assert (await ask(gateway)).status == 503
    assert gateway.loop.time() - started < 1.0
    wire, _ = await authority.request()
    assert await wire.gone() == b""


async def test_an_authority_that_hangs_delays_nobody_else(gateway: Gateway) -> None:
    authority, _ = await guarded(gateway, timeout=2.0)
    open_one = await gateway.serve("open")
    open_one.answers = reply(b"open")
    assert (await ask(gateway)).status == 200
    authority.answers = None
    waiting = await gateway.client()
    await waiting.send(get("/", "Authorization: Bearer slow"))
    await until(lambda: len(authority.wires) >= 1)
    client = await gateway.client()
    assert (await client.ask(get("/", host="open.example"))).body == b"open"
    assert (await ask(gateway)).status == 200


async def test_an_upload_waits_for_the_word_and_then_travels_whole(gateway: Gateway) -> None:
    authority, replica = await guarded(gateway)
    authority.answers = None
    replica.answers = lambda request: reply(b"%d" % len(request.body))
    client = await gateway.client()
    await client.send(post(b"x" * 300_000, "/", BEARER))
    wire, _ = await authority.request()
    await wire.send(reply())
    assert (await client.message()).body == b"300000"


async def test_an_upload_that_is_refused_is_not_taken(gateway: Gateway) -> None:
    authority, replica = await guarded(gateway)
    authority.answers = reply(b"", status="403 Forbidden")
    client = await gateway.client()
    await client.send(get("/", BEARER, "Content-Length: 1000000", method="POST") + b"x" * 1000)
    answer = await client.message()
    assert (answer.status, answer.closes) == (403, True)
    assert replica.untouched


async def test_a_body_that_breaks_while_the_authority_is_asked_is_400(gateway: Gateway) -> None:
    authority, replica = await guarded(gateway)
    authority.answers = None
    client = await gateway.client()
    await client.send(get("/", BEARER, "Transfer-Encoding: chunked", method="POST"))
    wire, _ = await authority.request()
    await client.send(b"nonsense\r\n")
    assert (await client.message()).status == 400
    await wire.send(reply())
    assert replica.untouched


async def test_a_changed_authority_leaves_nobody_who_waits_without_an_answer(
    gateway: Gateway,
) -> None:
    authority, _ = await guarded(gateway)
    authority.answers = None
    client = await gateway.client()
    await client.send(get("/", BEARER))
    wire, _ = await authority.request()
    gateway.auth = HttpAuth(UnixAddress(str(authority.path)), "/new")
    gateway.publish()
    await wire.send(reply())
    assert (await client.message()).status == 200
    authority.answers = reply()
    assert (await ask(gateway)).status == 200
    assert authority.requests[-1].target == "/new"


async def test_the_token_is_in_no_log_line(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    authority, _ = await guarded(gateway)
    authority.answers = reply(b"", status="500 Oops")
    await ask(gateway)
    await authority.stop()
    await ask(gateway)
    assert "did not answer" in caplog.text
    assert "sesame" not in caplog.text
