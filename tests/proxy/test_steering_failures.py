"""Every way a question to a router can go wrong has one answer, and the client notices none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from conversation import Replica, Wire, get, post, reply, soon
from multiplexed import Asking
from steered import PATH, Steered
from waiting import until

from gatewayd.core import http2
from gatewayd.core.model import Service, Timeouts

BODY = b'{"model": "m", "audio": "what no router parses"}'
GONE_S = 0.1  # within which replica and router know that the client left


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
    monkeypatch.setattr("gatewayd.proxy.steering._HELD_BACK_S", 0.3)
    (replica,) = await steered.start(1, router={"steer_timeout": 0.2})
    replica.answers = reply()
    wire = await steered.client(post(BODY, PATH))
    hanging = await steered.question()
    await wire.message()
    assert steered.outcomes == {"timeout": 1}
    # Whoever comes now does not wait.
    for _ in range(3):
        began = time.monotonic()
        assert (await wire.ask(post(BODY, PATH))).status == 200
        assert time.monotonic() - began < 0.15
    assert steered.outcomes == {"timeout": 1, "skipped": 3}
    # After a while one tries it, and only one.
    await asyncio.sleep(0.35)
    await wire.send(post(BODY, PATH))
    trial = await steered.question()
    other = await steered.client()
    began = time.monotonic()
    assert (await other.ask(post(BODY, PATH))).status == 200
    assert time.monotonic() - began < 0.15
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


# --- the chosen replica


async def test_a_replica_that_refuses_is_asked_about_once_more(steered: Steered) -> None:
    first, second = await steered.start(2)
    second.answers = reply(b"from the second")
    first.stop_listening()
    told = asyncio.Event()
    steered.gateway.plane.on_news = told.set
    wire = await steered.client(post(BODY, PATH))
    asked = await steered.chosen(first)
    async with asyncio.timeout(GONE_S + 0.4):
        await told.wait()  # control hears of it before the next report
    assert steered.gateway.plane.unreachable == {"main/chat|chat-a"}
    await steered.finished(asked)
    steered.publish()  # the router has lost it
    again = await steered.chosen(second)
    assert again.token != asked.token
    assert (await wire.message()).body == b"from the second"
    await steered.finished(again)
    await steered.ended(steered=1)
    assert steered.outcomes == {"steered": 2}
    totals = steered.gateway.totals()
    assert totals.retries == 1
    assert totals.upstream_errors == {("chat-a", "connect"): 1}
    assert second.requests[0].body == BODY


async def test_the_second_question_does_not_wait_for_long(
    steered: Steered, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gatewayd.proxy.steering._REMOVAL_S", 0.05)
    first, second = await steered.start(2)
    second.answers = reply()
    first.stop_listening()
    wire = await steered.client(post(BODY, PATH))
    asked = await steered.chosen(first)
    await steered.finished(asked)
    again = await steered.chosen(second)
    assert (await wire.message()).status == 200
    await steered.finished(again)


async def test_the_second_question_overtakes_the_end_of_the_first(steered: Steered) -> None:
    """The answer to the first must not be taken for one to the second."""
    first, second = await steered.start(2)
    second.answers = reply()
    first.stop_listening()
    wire = await steered.client(post(BODY, PATH))
    asked = await steered.chosen(first)
    assert await steered.bridge.finished() == asked.token
    steered.publish()
    again = await steered.question()  # on another connection: the first is not answered yet
    assert steered.load == 2
    asked.asking.answer()
    await until(lambda: steered.load == 1, "the first has ended")
    again.claim(second)
    assert (await wire.message()).status == 200
    assert steered.outcomes == {"steered": 2}
    await steered.finished(again)
    await steered.ended(steered=1)


async def test_a_router_that_insists_on_a_dead_replica_is_overruled(steered: Steered) -> None:
    first, second = await steered.start(2)
    second.answers = reply(b"from the second")
    first.stop_listening()
    wire = await steered.client(post(BODY, PATH))
    asked = await steered.chosen(first)
    await steered.finished(asked)
    steered.publish()
    again = await steered.chosen(first)
    assert (await wire.message()).body == b"from the second"
    await steered.finished(again)
    await steered.ended(fallback=1)
    assert steered.outcomes == {"steered": 1, "replica_refused": 1}
    assert steered.gateway.totals().upstream_errors == {("chat-a", "connect"): 1}


async def test_two_dead_replicas_of_three(steered: Steered) -> None:
    first, second, third = await steered.start(3)
    third.answers = reply(b"from the third")
    first.stop_listening()
    second.stop_listening()
    wire = await steered.client(post(BODY, PATH))
    asked = await steered.chosen(first)
    await steered.finished(asked)
    steered.publish()
    again = await steered.chosen(second)
    assert (await wire.message()).body == b"from the third"
    await steered.finished(again)
    await steered.ended(fallback=1)
    assert steered.outcomes == {"steered": 2, "replica_refused": 1}


async def test_all_replicas_dead_is_told_in_time(steered: Steered) -> None:
    (replica,) = await steered.start(1)
    replica.stop_listening()
    wire = await steered.client(post(BODY, PATH))
    asked = await steered.chosen(replica)
    await steered.finished(asked)
    steered.publish()
    again = await steered.question()
    again.asking.answer(503)
    assert (await wire.message()).status == 502
    await steered.ended(fallback=1)
    assert not steered.load
    assert steered.bridge.silent


async def test_the_router_dies_between_the_two_questions(steered: Steered) -> None:
    first, second = await steered.start(2)
    second.answers = reply(b"from the second")
    first.stop_listening()
    wire = await steered.client(post(BODY, PATH))
    asked = await steered.chosen(first)
    assert await steered.bridge.finished() == asked.token
    steered.router.stop_listening()
    asked.asking.peer.die()
    assert (await wire.message()).body == b"from the second"
    await steered.ended(fallback=1)
    assert steered.outcomes == {"steered": 1, "router_down": 1}
    assert not steered.load


async def test_a_replica_that_breaks_after_it_has_begun_is_not_repeated(steered: Steered) -> None:
    first, second = await steered.start(2)
    wire = await steered.client(post(BODY, PATH))
    asked = await steered.chosen(first)
    upstream, _ = await first.request()
    upstream.close()
    assert (await wire.message()).status == 502
    await steered.finished(asked)
    assert second.untouched
    await steered.ended(steered=1)


async def test_a_cut_stream_is_cut_for_the_client_and_lets_the_router_go(steered: Steered) -> None:
    (replica,) = await steered.start(1)
    wire = await steered.client(post(BODY, PATH))
    asked = await steered.chosen(replica)
    upstream, _ = await replica.request()
    await upstream.send(reply(b"", framing="chunked")[:-5] + b"1\r\na\r\n")
    await wire.upto(b"1\r\na\r\n")
    upstream.reset()
    assert await wire.gone() == b""
    await steered.finished(asked)
    await steered.ended(steered=1)


# --- replicas come and go


async def test_no_replica_is_said_without_asking(steered: Steered) -> None:
    (replica,) = await steered.start(1)
    steered.gateway.services["chat"] = _without(steered, replica.name)
    steered.publish()
    wire = await steered.client()
    answer = await wire.ask(post(BODY, PATH))
    assert answer.status == 503
    assert int(answer["Retry-After"]) >= 1
    assert steered.router.untouched
    assert steered.outcomes == {}


def _without(steered: Steered, name: str, *, draining: bool = False) -> Service:
    service = steered.gateway.services["chat"]
    left = tuple(
        replace(r, draining=True) if r.id == name else r
        for r in service.replicas
        if draining or r.id != name
    )
    return replace(service, replicas=left)


@pytest.mark.parametrize("draining", [True, False])
async def test_a_replica_that_leaves_while_it_is_chosen_gets_nothing(
    steered: Steered, draining: bool
) -> None:
    """The call that takes it away has been answered: nothing new may reach it."""
    first, second = await steered.start(2)
    second.answers = reply(b"from the second")
    wires = [await steered.client(post(BODY, PATH)) for _ in range(6)]
    questions = [await steered.question() for _ in wires]
    steered.gateway.services["chat"] = _without(steered, first.name, draining=draining)
    steered.publish()
    for asked in questions:
        asked.claim(first)
    for wire in wires:
        assert (await wire.message()).body == b"from the second"
    assert first.untouched
    assert steered.outcomes == {"gone": 6}
    for asked in questions:
        assert await steered.bridge.finished() in {q.token for q in questions}
        asked.asking.answer()
    await until(lambda: not steered.load, "the router has nothing in flight")
    await steered.ended(fallback=6)


async def test_the_last_replica_leaves_while_it_is_chosen(steered: Steered) -> None:
    (replica,) = await steered.start(1)
    wire = await steered.client(post(BODY, PATH))
    asked = await steered.question()
    steered.gateway.services["chat"] = _without(steered, replica.name)
    steered.publish()
    asked.claim(replica)
    assert (await wire.message()).status == 503
    await steered.finished(asked)
    assert replica.untouched
    assert steered.outcomes == {"gone": 1}


async def test_the_router_is_slow_while_a_replica_leaves(steered: Steered) -> None:
    first, second = await steered.start(2, router={"steer_timeout": 0.1})
    second.answers = reply(b"from the second")
    wires = [await steered.client(post(BODY, PATH)) for _ in range(4)]
    for _ in wires:
        await steered.question()
    steered.gateway.services["chat"] = _without(steered, first.name)
    steered.publish()
    for wire in wires:
        assert (await wire.message()).body == b"from the second"
    assert first.untouched


async def test_a_replica_that_came_after_the_question_can_be_chosen(steered: Steered) -> None:
    await steered.start(1)
    wire = await steered.client(post(BODY, PATH))
    asked = await steered.question()
    late = await steered.gateway.add_replica("chat-late")
    late.answers = reply(b"from the newcomer")
    service = steered.gateway.services["chat"]
    steered.gateway.services["chat"] = replace(
        service, replicas=(*service.replicas, steered.gateway.registered(late))
    )
    steered.publish()
    asked.claim(late)
    assert (await wire.message()).body == b"from the newcomer"
    await steered.finished(asked)


async def test_draining_the_chosen_replica_leaves_its_streams_whole(steered: Steered) -> None:
    first, _second = await steered.start(2)
    wire = await steered.client(post(BODY, PATH))
    asked = await steered.chosen(first)
    upstream, _ = await first.request()
    await upstream.send(reply(b"", framing="chunked")[:-5] + b"1\r\na\r\n")
    await wire.upto(b"1\r\na\r\n")
    steered.gateway.services["chat"] = _without(steered, first.name, draining=True)
    steered.publish()
    assert steered.gateway.load(first) == 1  # by which control knows when it is drained
    steered.gateway.services["chat"] = _without(steered, first.name)
    steered.publish()
    await upstream.send(b"1\r\nb\r\n0\r\n\r\n")
    await wire.expect(b"1\r\nb\r\n0\r\n\r\n")
    await steered.finished(asked)
    await steered.ended(steered=1)


# --- the bridge


async def test_no_bridge_no_question(steered: Steered) -> None:
    (replica,) = await steered.start(1, link=False)
    replica.answers = reply()
    wire = await steered.client()
    assert (await wire.ask(post(BODY, PATH))).status == 200
    assert steered.router.untouched
    await steered.ended(fallback=1)
    assert steered.outcomes == {"bridge_down": 1}
    await steered.link()
    await wire.send(post(BODY, PATH))
    asked = await steered.chosen(replica)
    assert (await wire.message()).status == 200
    await steered.finished(asked)
    await steered.ended(fallback=1, steered=1)


async def test_a_bridge_that_goes_while_it_is_waited_for(steered: Steered) -> None:
    (replica,) = await steered.start(1)
    replica.answers = reply()
    wires = [await steered.client(post(BODY, PATH)) for _ in range(3)]
    questions = [await steered.question() for _ in wires]
    steered.bridge.close()
    for wire in wires:
        assert (await wire.message()).status == 200
    for asked in questions:
        await asked.asking.given_up()
    await steered.ended(fallback=3)
    assert steered.outcomes == {"bridge_down": 3}
    assert not steered.load


async def test_a_bridge_that_goes_after_the_claim_is_not_missed(steered: Steered) -> None:
    (replica,) = await steered.start(1)
    wire = await steered.client(post(BODY, PATH))
    asked = await steered.chosen(replica)
    upstream, _ = await replica.request()
    await upstream.send(reply(b"", framing="chunked")[:-5] + b"1\r\na\r\n")
    await wire.upto(b"1\r\na\r\n")
    steered.bridge.close()
    # The router loses its target and says so to somebody who does not listen.
    asked.asking.answer(500)
    await until(lambda: not steered.load, "the router has nothing in flight")
    await upstream.send(b"1\r\nb\r\n0\r\n\r\n")
    await wire.expect(b"1\r\nb\r\n0\r\n\r\n")
    await steered.ended(steered=1)
    assert steered.outcomes == {"steered": 1}


async def test_a_new_bridge_takes_over_from_one_that_has_not_gone_yet(steered: Steered) -> None:
    (replica,) = await steered.start(1)
    replica.answers = reply()
    wire = await steered.client(post(BODY, PATH))
    await steered.question()
    old = steered.bridge
    await steered.link()
    assert (await wire.message()).status == 200
    assert steered.outcomes == {"bridge_down": 1}
    old.close()
    await wire.send(post(BODY, PATH))
    asked = await steered.chosen(replica)
    assert (await wire.message()).status == 200
    await steered.finished(asked)


# --- the client leaves


async def _gone_within(wire: Wire, seconds: float) -> None:
    async with asyncio.timeout(seconds):
        await wire.gone()


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_client_that_leaves_before_the_claim(steered: Steered, how: str) -> None:
    (replica,) = await steered.start(1)
    wire = await steered.client(post(BODY, PATH))
    asked = await steered.question()
    getattr(wire, how)()
    await soon(asked.asking.given_up(), GONE_S)
    await steered.ended(**{"-": 1})
    assert steered.outcomes == {"abandoned": 1}
    assert steered.gateway.totals().codes == {499: 1}
    assert not steered.load
    assert replica.untouched
    asked.claim(replica)
    assert await steered.bridge.finished() == asked.token
    assert replica.untouched


@pytest.mark.parametrize("seen", ["nothing", "the head", "a part"])
@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_client_that_leaves_after_the_claim(steered: Steered, seen: str, how: str) -> None:
    """Also during a prefill whose head has been sent already: nobody waits for its first token."""
    (replica,) = await steered.start(1)
    wire = await steered.client(post(BODY, PATH))
    asked = await steered.chosen(replica)
    upstream, _ = await replica.request()
    if seen != "nothing":
        head = reply(b"", "Content-Type: text/event-stream", framing="chunked")[:-5]
        await upstream.send(head + (b"1\r\na\r\n" if seen == "a part" else b""))
        await wire.upto(b"\r\n\r\n")
    getattr(wire, how)()
    await _gone_within(upstream, GONE_S)
    async with asyncio.timeout(GONE_S):
        await steered.finished(asked)
    await steered.ended(steered=1)
    assert steered.outcomes == {"steered": 1}
    assert steered.gateway.totals().codes == {499 if seen == "nothing" else 200: 1}


async def test_a_client_that_leaves_while_the_router_is_dialled(steered: Steered) -> None:
    (replica,) = await steered.start(1)
    wire = await steered.client(post(BODY, PATH))
    await until(lambda: steered.load, "the question is open")
    wire.reset()
    await until(lambda: steered.outcomes, "it was counted")
    assert steered.outcomes == {"abandoned": 1}
    assert not steered.load
    assert replica.untouched


async def test_a_client_that_leaves_between_the_two_questions(
    steered: Steered, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gatewayd.proxy.steering._REMOVAL_S", 5.0)
    first, second = await steered.start(2)
    first.stop_listening()
    wire = await steered.client(post(BODY, PATH))
    asked = await steered.chosen(first)
    await steered.finished(asked)
    wire.close()
    await until(lambda: steered.ways, "it was missed")
    assert not steered.gateway.plane._tasks
    assert second.untouched
    assert len(steered.router.peers[0].asking) == 1


async def test_a_client_that_leaves_as_it_is_claimed_for(steered: Steered) -> None:
    (replica,) = await steered.start(1)
    replica.answers = reply()
    for _ in range(20):
        wire = await steered.client(post(BODY, PATH))
        asked = await steered.question()
        asked.claim(replica)
        wire.reset()
        assert await steered.bridge.finished() == asked.token
        asked.asking.answer()
    await until(lambda: not steered.load, "the router has nothing in flight")
    await until(lambda: sum(steered.ways.values()) == 20, "all have ended")
    assert not steered.gateway.load(replica)


async def test_a_client_of_a_fallback_leaves(steered: Steered) -> None:
    (replica,) = await steered.start(1)
    wire = await steered.client(post(BODY, PATH))
    asked = await steered.question()
    asked.asking.answer(503)
    upstream, _ = await replica.request()
    wire.close()
    await _gone_within(upstream, GONE_S)
    await steered.ended(fallback=1)
    assert steered.bridge.silent


# --- bounds of the exchange hold


async def test_a_replica_that_does_not_answer_in_time_lets_the_router_go(steered: Steered) -> None:
    (replica,) = await steered.start(1, timeouts=Timeouts(first_byte=0.1))
    wire = await steered.client(post(BODY, PATH))
    asked = await steered.chosen(replica)
    await replica.request()
    assert (await wire.message()).status == 504
    await steered.finished(asked)
    await steered.ended(steered=1)


async def test_steered_get_is_no_question(steered: Steered) -> None:
    (replica,) = await steered.start(1)
    wire = await steered.client(get(PATH))
    router, request = await steered.router.request()
    assert "X-Ask" not in request
    await router.send(reply(b"405", status="405 Method Not Allowed"))
    assert (await wire.message()).status == 405
    assert replica.untouched
