"""The bridge claims what asks, holds the router until the worker lets go, and forgets nothing."""

from __future__ import annotations

import asyncio
import random

import pytest
from claiming import FIELDS, PATH, SLOTS, Claiming, asks, tokens
from conversation import Wire, get, post, reply
from waiting import until

from gatewayd.core.steering import token


async def test_the_port_is_the_decision(claiming: Claiming) -> None:
    first, second = await claiming.serve("a", "b")
    worker = await claiming.worker()
    for name, value in zip(("b", "a", "b"), tokens(), strict=False):
        router = await claiming.router(name)
        await router.send(asks(value))
        assert await worker.claim() == (value, name)
        await router.nothing()  # it is held
        assert claiming.open == 1
        await worker.finish(value)
        answer = await router.message()
        assert answer.status == 200
        assert not answer.closes
        assert claiming.open == 0
    assert first.untouched
    assert second.untouched
    assert (claiming.load("a"), claiming.load("b")) == (0, 0)  # workers count for themselves


async def test_a_connection_of_the_router_serves_again(claiming: Claiming) -> None:
    (replica,) = await claiming.serve("a")
    replica.answers = reply(b"carried")
    worker = await claiming.worker()
    router = await claiming.router("a")
    for value in tokens()[:5]:
        await router.send(asks(value))
        assert await worker.claim() == (value, "a")
        await worker.finish(value)
        assert (await router.message()).status == 200
    # And takes a request that goes through.
    await router.send(post(b"{}", PATH, *FIELDS))
    assert (await router.message()).body == b"carried"
    assert worker.silent
    assert replica.requests[0].body == b"{}"


async def test_three_hundred_are_held_and_let_go_in_any_order(claiming: Claiming) -> None:
    await claiming.serve("a")
    worker = await claiming.worker()
    routers: dict[bytes, Wire] = {}
    for number in range(300):
        value = token(0, 1, number)
        routers[value] = await claiming.router("a")
        await routers[value].send(asks(value))
        assert await worker.claim() == (value, "a")
    assert claiming.open == 300
    order = list(routers)
    random.Random(3).shuffle(order)  # noqa: S311
    for value in order:
        await worker.finish(value)
    for value in order:
        assert (await routers[value].message()).status == 200
    assert claiming.open == 0


async def test_each_worker_hears_of_its_own(claiming: Claiming) -> None:
    await claiming.serve("a")
    workers = [await claiming.worker(slot) for slot in range(SLOTS - 1)]
    routers = []
    for slot, worker in enumerate(workers):
        routers.append(await claiming.router("a"))
        value = token(slot, 1, 7)
        await routers[-1].send(asks(value))
        assert await worker.claim() == (value, "a")
    assert all(worker.silent for worker in workers)
    await workers[1].finish(token(1, 1, 7))
    assert (await routers[1].message()).status == 200
    await routers[0].nothing()
    await routers[2].nothing()


# --- who asks is not there


async def test_nobody_asks(claiming: Claiming) -> None:
    """The worker is gone, or has never been heard of."""
    await claiming.serve("a")
    router = await claiming.router("a")
    await router.send(asks(token(2, 1, 1)))
    answer = await router.message()
    assert answer.status == 503
    assert answer["X-Gatewayd-Failure"] == "unclaimed"
    assert claiming.open == 0


async def test_one_token_is_claimed_once(claiming: Claiming) -> None:
    """A router that repeats requests, whatever it was told."""
    await claiming.serve("a", "b")
    worker = await claiming.worker()
    first, second = await claiming.router("a"), await claiming.router("b")
    value = token(0, 1, 1)
    await first.send(asks(value))
    assert await worker.claim() == (value, "a")
    await second.send(asks(value))
    assert (await second.message()).status == 503
    assert worker.silent
    await worker.finish(value)
    assert (await first.message()).status == 200


@pytest.mark.parametrize("value", ["", "s0", "s0.1", "0123456789abcdef00000001", "s0.1.1 s0.1.2"])
async def test_what_is_no_token_goes_through(claiming: Claiming, value: str) -> None:
    (replica,) = await claiming.serve("a")
    replica.answers = reply(b"carried")
    worker = await claiming.worker()
    router = await claiming.router("a")
    await router.send(post(b"{}", PATH, f"X-Ask: {value}"))
    answer = await router.message()
    assert answer.body == b"carried"
    assert answer["X-Gatewayd-Replica"] == "a"
    assert "X-Ask" not in replica.requests[0]
    assert worker.silent


async def test_a_replica_does_not_speak_for_the_bridge(claiming: Claiming) -> None:
    (replica,) = await claiming.serve("a")
    forged = ("X-Gatewayd-Failure: connect", "X-Gatewayd-Replica: b")
    replica.answers = reply(b"busy", *forged, status="503 Service Unavailable")
    router = await claiming.router("a")
    answer = await router.ask(post(b"{}", PATH))
    assert answer.all("X-Gatewayd-Replica") == ["a"]
    assert "X-Gatewayd-Failure" not in answer


async def test_probes_are_answered_beside_claims(claiming: Claiming) -> None:
    (replica,) = await claiming.serve("a")
    worker = await claiming.worker()
    router = await claiming.router("a")
    await router.send(asks(tokens()[0]))
    await worker.claim()
    probe = await claiming.router("a")
    assert (await probe.ask(get("/health"))).status == 200
    assert replica.untouched


# --- endings


async def test_a_worker_that_dies_lets_all_its_own_go(claiming: Claiming) -> None:
    await claiming.serve("a")
    dying, other = await claiming.worker(0), await claiming.worker(1)
    held = []
    for value in tokens()[:20]:
        held.append(await claiming.router("a"))
        await held[-1].send(asks(value))
        await dying.claim()
    spared = await claiming.router("a")
    await spared.send(asks(token(1, 1, 1)))
    await other.claim()
    dying.die()
    for router in held:
        assert (await router.message()).status == 200
    assert claiming.open == 1
    await spared.nothing()
    # Its successor is heard in the same slot.
    successor = await claiming.worker(0)
    await held[0].send(asks(token(0, 2, 1)))
    assert await successor.claim() == (token(0, 2, 1), "a")


async def test_a_successor_that_comes_before_the_death_is_noticed(claiming: Claiming) -> None:
    await claiming.serve("a")
    old = await claiming.worker(0)
    router = await claiming.router("a")
    await router.send(asks(token(0, 1, 1)))
    await old.claim()
    new = await claiming.worker(0)
    assert (await router.message()).status == 200
    await router.send(asks(token(0, 2, 1)))
    assert await new.claim() == (token(0, 2, 1), "a")
    old.die()
    await router.nothing()
    assert claiming.open == 1


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_router_that_gives_up_is_forgotten(claiming: Claiming, how: str) -> None:
    await claiming.serve("a")
    worker = await claiming.worker()
    router = await claiming.router("a")
    await router.send(asks(tokens()[0]))
    await worker.claim()
    getattr(router, how)()
    await until(lambda: not claiming.open, "the claim is forgotten")
    await worker.finish(tokens()[0])  # the worker's exchange ends some time: no harm
    again = await claiming.router("a")
    await again.send(asks(tokens()[1]))
    assert await worker.claim() == (tokens()[1], "a")


async def test_a_finish_for_nothing(claiming: Claiming) -> None:
    await claiming.serve("a")
    worker = await claiming.worker()
    await worker.finish(tokens()[0])
    worker.say(b"what?")
    worker.say(b"C" + tokens()[0] + b" a")
    router = await claiming.router("a")
    await router.send(asks(tokens()[1]))
    assert await worker.claim() == (tokens()[1], "a")
    await worker.finish(tokens()[1])
    await worker.finish(tokens()[1])
    assert (await router.message()).status == 200


async def test_the_replica_of_a_claim_goes(claiming: Claiming) -> None:
    """Its port takes nothing new, and what was decided stays until its exchange has ended."""
    await claiming.serve("a")
    worker = await claiming.worker()
    router = await claiming.router("a")
    await router.send(asks(tokens()[0]))
    await worker.claim()
    number = claiming.ports["a"]
    await claiming.retire("a")
    await router.nothing()
    await worker.finish(tokens()[0])
    answer = await router.message()
    assert answer.status == 200
    assert answer.closes
    with pytest.raises(ConnectionError):
        await asyncio.open_connection("127.0.0.1", number)
    del claiming.ports["a"]


async def test_a_change_of_the_port_leaves_claims_alone(claiming: Claiming) -> None:
    await claiming.serve("a")
    worker = await claiming.worker()
    router = await claiming.router("a")
    await router.send(asks(tokens()[0]))
    await worker.claim()
    await claiming.change("a", idle_timeout=0.01, first_byte_timeout=0.01)
    await router.nothing(0.1)
    await worker.finish(tokens()[0])
    assert (await router.message()).status == 200


async def test_the_bridge_ends(claiming: Claiming) -> None:
    await claiming.serve("a")
    worker = await claiming.worker()
    router = await claiming.router("a")
    await router.send(asks(tokens()[0]))
    await worker.claim()
    claiming.role.drain()
    await router.nothing()
    await worker.finish(tokens()[0])
    assert (await router.message()).closes


# --- what is held for long


async def begun(router: Wire) -> bytes:
    """The head of an answer whose end is still to come."""
    head = await router.upto(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Transfer-Encoding: chunked\r\n" in head
    return head


async def test_the_answer_of_a_long_one_is_begun(claiming: Claiming) -> None:
    """So that the router forgets what it kept for the case that it has to ask again."""
    await claiming.serve("a")
    worker = await claiming.worker()
    router = await claiming.router("a")
    for value in tokens()[:3]:
        asked = asyncio.get_running_loop().time()
        await router.send(asks(value))
        await worker.claim()
        assert b"X-Gatewayd-Replica: a\r\n" in await begun(router)
        assert asyncio.get_running_loop().time() - asked > 0.2
        await router.nothing()
        assert claiming.open == 1
        await worker.finish(value)
        await router.expect(b"0\r\n\r\n")  # and the connection serves again
        assert claiming.open == 0


async def test_a_worker_that_dies_ends_what_was_begun(claiming: Claiming) -> None:
    await claiming.serve("a")
    worker = await claiming.worker()
    router = await claiming.router("a")
    await router.send(asks(tokens()[0]))
    await worker.claim()
    await begun(router)
    worker.die()
    await router.expect(b"0\r\n\r\n")
    assert claiming.open == 0


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_router_that_leaves_what_was_begun(claiming: Claiming, how: str) -> None:
    await claiming.serve("a")
    worker = await claiming.worker()
    router = await claiming.router("a")
    await router.send(asks(tokens()[0]))
    await worker.claim()
    await begun(router)
    getattr(router, how)()
    await until(lambda: not claiming.open, "it is missed")
    await worker.finish(tokens()[0])


async def test_no_answer_is_begun_before_the_request_has_come(claiming: Claiming) -> None:
    await claiming.serve("a")
    worker = await claiming.worker()
    router = await claiming.router("a")
    request = asks(tokens()[0], bytes(1000))
    await router.send(request[:-500])
    await worker.claim()
    await router.nothing(0.4)
    await router.send(request[-500:])
    await worker.finish(tokens()[0])
    assert (await router.message()).status == 200


async def test_one_that_was_begun_ends_with_its_port(claiming: Claiming) -> None:
    await claiming.serve("a")
    worker = await claiming.worker()
    router = await claiming.router("a")
    await router.send(asks(tokens()[0]))
    await worker.claim()
    await begun(router)
    await claiming.retire("a")
    await worker.finish(tokens()[0])
    assert await router.rest() == b"0\r\n\r\n"
    del claiming.ports["a"]


async def test_the_timer_rests_when_nothing_is_held(claiming: Claiming) -> None:
    await claiming.serve("a")
    worker = await claiming.worker()
    router = await claiming.router("a")
    for value in tokens()[:10]:
        await router.send(asks(value))
        await worker.claim()
        await worker.finish(value)
        await router.message()
    await until(lambda: claiming.claims._timer is None, "it has stopped")
    assert not claiming.claims._young
