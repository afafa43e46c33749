"""Every way a question to a router can go wrong has one answer, and the client notices none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
from conversation import Replica, post, reply
from multiplexed import Asking
from steered import BODY, PATH, Steered
from waiting import until

from gatewayd.core import http2

# --- the router answers without having asked the bridge


def _without_a_body(asking: Asking) -> None:
    asking.answer_without_body(204)


def _with_a_hint_before(asking: Asking) -> None:
    asking.begin(103)
    asking.answer(400)


@pytest.mark.parametrize(
    "refusal",
    [
        *(200, 307, 400, 404, 405, 408, 413, 415, 422, 429, 500, 501, 502, 503),
        *(_without_a_body, _with_a_hint_before),
    ],
)
async def test_what_the_router_refuses_a_replica_may_accept(
    steered: Steered, refusal: int | Callable[[Asking], None]
) -> None:
    first, second = await steered.start(2)
    first.answers = second.answers = reply(b"accepted")
    wire = await steered.client(post(BODY, PATH, "Content-Type: audio/x"))
    asked = await steered.question()
    if isinstance(refusal, int):
        asked.asking.answer(refusal, b"of the router")
    else:
        refusal(asked.asking)
    answer = await wire.message()
    assert answer.status == 200
    assert answer.body == b"accepted"
    (request,) = first.requests + second.requests
    assert request.body == BODY
    assert request["Content-Type"] == "audio/x"
    await steered.ended(fallback=1)
    assert steered.outcomes == {"refused": 1}
    assert steered.gateway.totals().upstream_errors == {}
    await until(lambda: not steered.load, "the router has nothing in flight")
    assert steered.bridge.silent
    # Its connection is as good as before.
    await wire.send(post(BODY, PATH))
    asked = await steered.chosen(second)
    assert (await wire.message()).body == b"accepted"
    await steered.finished(asked)
    await steered.ended(fallback=1, steered=1)


async def test_a_routing_key_that_no_frame_takes(steered: Steered) -> None:
    (replica,) = await steered.start(1, router={"routing_key_header": "X-Session"})
    replica.answers = reply(b"accepted")
    steered.gateway.limit(header_size=64 * 1024)
    wire = await steered.client(post(BODY, PATH, "X-Session: " + "k" * 20_000))
    assert (await wire.message()).status == 200
    await steered.ended(fallback=1)
    assert steered.outcomes == {"refused": 1}


async def test_a_replicas_own_refusal_is_the_clients_answer(steered: Steered) -> None:
    (replica,) = await steered.start(1)
    replica.answers = reply(b"too long", status="400 Bad Request")
    wire = await steered.client(post(BODY, PATH))
    asked = await steered.chosen(replica)
    answer = await wire.message()
    assert (answer.status, answer.body) == (400, b"too long")
    await steered.finished(asked)
    await steered.ended(steered=1)


async def test_refused_requests_are_spread_by_the_gateways_own_balancer(steered: Steered) -> None:
    replicas = await steered.start(4)
    for _ in range(8):
        await steered.client(post(BODY, PATH))
        asked = await steered.question()
        asked.asking.answer(400)
    await until(lambda: all(steered.gateway.load(r) == 2 for r in replicas), "two on each")
    assert steered.outcomes == {"refused": 8}


# --- the router is slow


async def test_a_slow_router_is_waited_for_as_long_as_the_service_says(steered: Steered) -> None:
    (replica,) = await steered.start(1, router={"steer_timeout": 0.3})
    replica.answers = reply()
    began = time.monotonic()
    wire = await steered.client(post(BODY, PATH))
    asked = await steered.question()
    answer = await wire.message()
    waited = time.monotonic() - began
    assert answer.status == 200
    assert 0.25 < waited < 1.5
    await asked.asking.given_up()  # it was hung up on
    await steered.ended(fallback=1)
    assert steered.outcomes == {"timeout": 1}
    assert not steered.load
    assert steered.bridge.silent
    asked.claim(replica)
    assert await steered.bridge.finished() == asked.token  # too late: let go at once
    assert len(replica.requests) == 1


async def test_a_late_claim_does_not_disturb_a_stream(steered: Steered) -> None:
    first, second = await steered.start(2, router={"steer_timeout": 0.05})
    wire = await steered.client(post(BODY, PATH))
    asked = await steered.question()
    await until(lambda: steered.outcomes, "it was given up")
    busy, idle = (first, second) if steered.gateway.load(first) else (second, first)
    upstream, _ = await busy.request()
    await upstream.send(reply(b"", framing="chunked")[:-5])
    await wire.upto(b"\r\n\r\n")
    asked.claim(idle)
    assert await steered.bridge.finished() == asked.token
    await upstream.send(b"2\r\nok\r\n0\r\n\r\n")
    await wire.expect(b"2\r\nok\r\n0\r\n\r\n")
    assert idle.untouched
    await steered.ended(fallback=1)


async def test_a_router_that_hangs_costs_few_requests_their_time(
    steered: Steered, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gatewayd.proxy.steering._HELD_BACK_S", 2.0)
    (replica,) = await steered.start(1, router={"steer_timeout": 0.2})
    replica.answers = reply()
    wire = await steered.client(post(BODY, PATH))
    hanging = await steered.question()
    await wire.message()
    assert steered.outcomes == {"timeout": 1}
    # Whoever comes now does not wait.
    for _ in range(3):
        assert (await wire.ask(post(BODY, PATH))).status == 200
    assert steered.outcomes == {"timeout": 1, "skipped": 3}
    # After a while one tries it, and only one.
    await asyncio.sleep(2.05)
    await wire.send(post(BODY, PATH))
    trial = await steered.question()
    other = await steered.client()
    assert (await other.ask(post(BODY, PATH))).status == 200
    assert steered.outcomes["skipped"] == 4
    trial.claim(replica)
    await wire.message()
    await steered.finished(trial)
    # It answers again: so it is asked again.
    await wire.send(post(BODY, PATH))
    asked = await steered.chosen(replica)
    await wire.message()
    await steered.finished(asked)
    assert steered.outcomes == {"timeout": 1, "skipped": 4, "steered": 2}
    await hanging.asking.given_up()


async def test_a_trial_that_learns_nothing_leaves_the_next_to_try(
    steered: Steered, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gatewayd.proxy.steering._HELD_BACK_S", 0.0)
    (replica,) = await steered.start(1, router={"steer_timeout": 0.2})
    replica.answers = reply()
    await (await steered.client()).ask(post(BODY, PATH))
    await steered.question()
    impatient = await steered.client(post(BODY, PATH))
    await steered.question()
    impatient.close()
    await until(lambda: steered.outcomes.get("abandoned"), "the client was missed")
    wire = await steered.client(post(BODY, PATH))
    asked = await steered.chosen(replica)
    await wire.message()
    await steered.finished(asked)
    assert steered.outcomes == {"timeout": 1, "abandoned": 1, "steered": 1}


# --- the router dies


async def test_a_router_that_refuses_connections(steered: Steered) -> None:
    (replica,) = await steered.start(1)
    replica.answers = reply()
    steered.router.stop_listening()
    wire = await steered.client()
    for _ in range(3):
        assert (await wire.ask(post(BODY, PATH))).status == 200
    await steered.ended(fallback=3)
    assert steered.outcomes == {"router_down": 3}
    assert not steered.load


@pytest.mark.parametrize("how", ["dies", "resets", "goes away"])
async def test_a_router_that_breaks_before_it_answers(steered: Steered, how: str) -> None:
    (replica,) = await steered.start(1)
    replica.answers = reply()
    wire = await steered.client(post(BODY, PATH))
    asked = await steered.question()
    match how:
        case "dies":
            asked.asking.peer.die()
        case "resets":
            asked.asking.reset()
        case "goes away":
            asked.asking.peer.send(http2.frame(http2.GOAWAY, 0, 0, bytes(8)))
    assert (await wire.message()).status == 200
    await steered.ended(fallback=1)
    assert steered.outcomes == {"router_down": 1}
    assert len(replica.requests) == 1
    assert not steered.load
    assert steered.gateway.totals().upstream_errors == {}


@pytest.mark.parametrize(
    "words", [b"", b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", b"what? no answer"]
)
async def test_a_router_that_does_not_speak_http2(
    steered: Steered, words: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Known at once, not after the time that a decision may take; and said once."""
    (replica,) = await steered.start(1)
    replica.answers = reply()
    old = Replica("old", steered.gateway.directory / "old.sock")
    await old.start()
    steered.gateway.replicas["old"] = old
    steered.router.path = old.path
    steered.publish()
    wire = await steered.client()
    for _ in range(2):
        await wire.send(post(BODY, PATH))
        router = await old.accept()
        await router.expect(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        if words:
            await router.send(words)
        else:
            router.close()
        assert (await wire.message()).status == 200
        await router.gone()
    await steered.ended(fallback=2)
    assert steered.outcomes == {"router_down": 2}
    assert not steered.load
    assert caplog.text.count("does not speak HTTP/2") == (1 if words else 0)


async def test_an_idle_connection_that_the_router_had_closed(steered: Steered) -> None:
    (replica,) = await steered.start(1)
    replica.answers = reply()
    wire = await steered.client(post(BODY, PATH))
    asked = await steered.chosen(replica)
    await wire.message()
    await steered.finished(asked)
    asked.asking.peer.die()
    await wire.send(post(BODY, PATH))
    assert (await wire.message()).status == 200
    await until(lambda: steered.ways, "both have ended")
    assert sum(steered.ways.values()) == 2
    assert not steered.load


@pytest.mark.parametrize("when", ["before the head", "in the stream", "as it is let go"])
@pytest.mark.parametrize("how", ["dies", "answers an error"])
async def test_a_router_that_dies_after_the_claim_is_not_missed(
    steered: Steered, when: str, how: str
) -> None:
    async def die() -> None:
        if how == "dies":
            asked.asking.peer.die()
        else:
            asked.asking.answer(500)
        await until(lambda: not steered.load, "the router has nothing in flight")

    (replica,) = await steered.start(1)
    wire = await steered.client(post(BODY, PATH))
    asked = await steered.chosen(replica)
    upstream, _ = await replica.request()
    if when == "before the head":
        await die()
    await upstream.send(reply(b"", framing="chunked")[:-5] + b"1\r\na\r\n")
    await wire.upto(b"1\r\na\r\n")
    if when == "in the stream":
        await die()
    await upstream.send(b"1\r\nb\r\n0\r\n\r\n")
    await wire.expect(b"1\r\nb\r\n0\r\n\r\n")
    assert await steered.bridge.finished() == asked.token
    if when == "as it is let go":
        await die()
    await steered.ended(steered=1)
    assert steered.outcomes == {"steered": 1}
    assert steered.load == 0  # and was counted down once


async def test_loads_of_the_router_stay_right_when_one_of_two_loses_it(steered: Steered) -> None:
    first, second = await steered.start(2)
    await steered.client(post(BODY, PATH))
    lost = await steered.chosen(first)
    upstream, _ = await first.request()
    await steered.client(post(BODY, PATH))
    held = await steered.chosen(second)
    await second.request()
    assert steered.load == 2
    lost.asking.reset()
    await until(lambda: steered.load == 1, "one is missed")
    await upstream.send(reply())
    assert await steered.bridge.finished() == lost.token
    assert steered.load == 1  # the other's
    assert held.token != lost.token
