"""The bridge goes, the client leaves, a bound is reached: everybody who waits is let go."""

from __future__ import annotations

import asyncio

import pytest
from conversation import Wire, get, post, reply, soon
from steered import BODY, GONE_S, PATH, Steered
from waiting import until

from gatewayd.core.model import Timeouts

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
    wire, asked, upstream = await steered.streaming(post(BODY, PATH), replica)
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
    await until(lambda: not steered.gateway.plane._tasks, "nothing of it goes on")
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
