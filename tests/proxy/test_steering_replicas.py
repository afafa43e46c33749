"""The chosen replica fails, or replicas come and go while the router decides."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from conversation import Replica, post, reply
from steered import BODY, GONE_S, PATH, Steered
from waiting import until

from gatewayd.core.model import Service

# --- the chosen replica


async def test_a_replica_that_refuses_is_asked_about_once_more(steered: Steered) -> None:
    first, second = await steered.start(2)
    second.answers = reply(b"from the second")
    first.stop_listening()
    told = asyncio.Event()
    steered.gateway.plane.on_news = told.set
    wire = await steered.client(post(BODY, PATH))
    asked = await steered.chosen(first)
    async with asyncio.timeout(GONE_S):
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


async def broken_by(replica: Replica, steered: Steered) -> None:
    """A request that this replica takes and closes."""
    wire = await steered.client(post(BODY, PATH))
    asked = await steered.chosen(replica)
    upstream, _ = await replica.request()
    upstream.close()
    assert (await wire.message()).status == 502
    await steered.finished(asked)


async def test_a_replica_that_breaks_after_it_has_begun_is_not_repeated(steered: Steered) -> None:
    first, second = await steered.start(2)
    await broken_by(first, steered)
    assert second.untouched
    await steered.ended(steered=1)


async def test_a_cut_stream_is_cut_for_the_client_and_lets_the_router_go(steered: Steered) -> None:
    (replica,) = await steered.start(1)
    wire, asked, upstream = await steered.streaming(post(BODY, PATH), replica)
    upstream.reset()
    assert await wire.gone() == b""
    await steered.finished(asked)
    await steered.ended(steered=1)


async def test_one_that_fails_is_left_out_although_the_router_goes_on_choosing_it(
    steered: Steered,
) -> None:
    first, second = await steered.start(2)
    second.answers = reply(b"from the second")
    await broken_by(first, steered)
    for _ in range(2):
        wire = await steered.client(post(BODY, PATH))
        asked = await steered.chosen(first)
        assert (await wire.message()).body == b"from the second"
        await steered.finished(asked)
    assert steered.outcomes == {"steered": 1, "ejected": 2}
    await steered.ended(steered=1, fallback=2)


async def test_one_that_fails_is_not_left_out_where_there_is_no_other(steered: Steered) -> None:
    (replica,) = await steered.start(1)
    for answer in (b"", reply()):
        wire = await steered.client(post(BODY, PATH))
        asked = await steered.chosen(replica)
        upstream, _ = await replica.request()
        if answer:
            await upstream.send(answer)
        else:
            upstream.close()
        assert (await wire.message()).status == (200 if answer else 502)
        await steered.finished(asked)
    assert steered.outcomes == {"steered": 2}


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
    wire, asked, upstream = await steered.streaming(post(BODY, PATH), first)
    steered.gateway.services["chat"] = _without(steered, first.name, draining=True)
    steered.publish()
    assert steered.gateway.load(first) == 1  # by which control knows when it is drained
    steered.gateway.services["chat"] = _without(steered, first.name)
    steered.publish()
    await upstream.send(b"1\r\nb\r\n0\r\n\r\n")
    await wire.expect(b"1\r\nb\r\n0\r\n\r\n")
    await steered.finished(asked)
    await steered.ended(steered=1)
