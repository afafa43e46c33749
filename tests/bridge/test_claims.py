"""The bridge claims what asks, holds the router until the worker lets go, and forgets nothing."""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from claiming import SLOTS, Claiming
from conversation import Wire, chunked, get, post, reply
from waiting import until

from gatewayd.core.steering import token


@pytest.fixture
async def bridge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[Claiming]:
    # Long enough that a test sees what comes before it, on a busy machine too.
    monkeypatch.setattr("gatewayd.bridge.claims._BEGIN_AFTER_S", 0.25)
    bridge = Claiming(tmp_path)
    yield bridge
    await bridge.settle()
    errors = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    assert not errors


PATH = "/v1/chat/completions"
FIELDS = ("X-Request-Id: abc", "Authorization: Bearer of-the-router")


def asks(value: bytes, body: bytes = b'{"n": 1}', *fields: str) -> bytes:
    """What a router sends on that only decides."""
    return post(body, PATH, *FIELDS, f"X-Ask: {value.decode()}", *fields, host="127.0.0.1:10001")


def tokens(slot: int = 0) -> list[bytes]:
    return [token(slot, 1, number) for number in range(1, 200)]


async def test_the_port_is_the_decision(bridge: Claiming) -> None:
    first, second = await bridge.serve("a", "b")
    worker = await bridge.worker()
    for name, value in zip(("b", "a", "b"), tokens(), strict=False):
        router = await bridge.router(name)
        await router.send(asks(value))
        assert await worker.claim() == (value, name)
        await router.nothing()  # it is held
        assert bridge.open == 1
        await worker.finish(value)
        answer = await router.message()
        assert answer.status == 200
        assert not answer.closes
        assert bridge.open == 0
    assert first.untouched
    assert second.untouched
    assert (bridge.load("a"), bridge.load("b")) == (0, 0)  # workers count for themselves


async def test_a_connection_of_the_router_serves_again(bridge: Claiming) -> None:
    (replica,) = await bridge.serve("a")
    replica.answers = reply(b"carried")
    worker = await bridge.worker()
    router = await bridge.router("a")
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


async def test_three_hundred_are_held_and_let_go_in_any_order(bridge: Claiming) -> None:
    await bridge.serve("a")
    worker = await bridge.worker()
    routers: dict[bytes, Wire] = {}
    for number in range(300):
        value = token(0, 1, number)
        routers[value] = await bridge.router("a")
        await routers[value].send(asks(value))
        assert await worker.claim() == (value, "a")
    assert bridge.open == 300
    order = list(routers)
    random.Random(3).shuffle(order)  # noqa: S311
    for value in order:
        await worker.finish(value)
    for value in order:
        assert (await routers[value].message()).status == 200
    assert bridge.open == 0


async def test_each_worker_hears_of_its_own(bridge: Claiming) -> None:
    await bridge.serve("a")
    workers = [await bridge.worker(slot) for slot in range(SLOTS - 1)]
    routers = []
    for slot, worker in enumerate(workers):
        routers.append(await bridge.router("a"))
        value = token(slot, 1, 7)
        await routers[-1].send(asks(value))
        assert await worker.claim() == (value, "a")
    assert all(worker.silent for worker in workers)
    await workers[1].finish(token(1, 1, 7))
    assert (await routers[1].message()).status == 200
    await routers[0].nothing()
    await routers[2].nothing()


# --- who asks is not there


async def test_nobody_asks(bridge: Claiming) -> None:
    """The worker is gone, or has never been heard of."""
    await bridge.serve("a")
    router = await bridge.router("a")
    await router.send(asks(token(2, 1, 1)))
    answer = await router.message()
    assert answer.status == 503
    assert answer["X-Gatewayd-Failure"] == "unclaimed"
    assert bridge.open == 0


async def test_one_token_is_claimed_once(bridge: Claiming) -> None:
    """A router that repeats requests, whatever it was told."""
    await bridge.serve("a", "b")
    worker = await bridge.worker()
    first, second = await bridge.router("a"), await bridge.router("b")
    value = token(0, 1, 1)
    await first.send(asks(value))
    assert await worker.claim() == (value, "a")
    await second.send(asks(value))
    assert (await second.message()).status == 503
    assert worker.silent
    await worker.finish(value)
    assert (await first.message()).status == 200


@pytest.mark.parametrize("value", ["", "s0", "s0.1", "0123456789abcdef00000001", "s0.1.1 s0.1.2"])
async def test_what_is_no_token_goes_through(bridge: Claiming, value: str) -> None:
    (replica,) = await bridge.serve("a")
    replica.answers = reply(b"carried")
    worker = await bridge.worker()
    router = await bridge.router("a")
    await router.send(post(b"{}", PATH, f"X-Ask: {value}"))
    answer = await router.message()
    assert answer.body == b"carried"
    assert answer["X-Gatewayd-Replica"] == "a"
    assert "X-Ask" not in replica.requests[0]
    assert worker.silent


async def test_a_replica_does_not_speak_for_the_bridge(bridge: Claiming) -> None:
    (replica,) = await bridge.serve("a")
    forged = ("X-Gatewayd-Failure: connect", "X-Gatewayd-Replica: b")
    replica.answers = reply(b"busy", *forged, status="503 Service Unavailable")
    router = await bridge.router("a")
    answer = await router.ask(post(b"{}", PATH))
    assert answer.all("X-Gatewayd-Replica") == ["a"]
    assert "X-Gatewayd-Failure" not in answer


async def test_probes_are_answered_beside_claims(bridge: Claiming) -> None:
    (replica,) = await bridge.serve("a")
    worker = await bridge.worker()
    router = await bridge.router("a")
    await router.send(asks(tokens()[0]))
    await worker.claim()
    probe = await bridge.router("a")
    assert (await probe.ask(get("/health"))).status == 200
    assert replica.untouched


# --- endings


async def test_a_worker_that_dies_lets_all_its_own_go(bridge: Claiming) -> None:
    await bridge.serve("a")
    dying, other = await bridge.worker(0), await bridge.worker(1)
    held = []
    for value in tokens()[:20]:
        held.append(await bridge.router("a"))
        await held[-1].send(asks(value))
        await dying.claim()
    spared = await bridge.router("a")
    await spared.send(asks(token(1, 1, 1)))
    await other.claim()
    dying.die()
    for router in held:
        assert (await router.message()).status == 200
    assert bridge.open == 1
    await spared.nothing()
    # Its successor is heard in the same slot.
    successor = await bridge.worker(0)
    await held[0].send(asks(token(0, 2, 1)))
    assert await successor.claim() == (token(0, 2, 1), "a")


async def test_a_successor_that_comes_before_the_death_is_noticed(bridge: Claiming) -> None:
    await bridge.serve("a")
    old = await bridge.worker(0)
    router = await bridge.router("a")
    await router.send(asks(token(0, 1, 1)))
    await old.claim()
    new = await bridge.worker(0)
    assert (await router.message()).status == 200
    await router.send(asks(token(0, 2, 1)))
    assert await new.claim() == (token(0, 2, 1), "a")
    old.die()
    await router.nothing()
    assert bridge.open == 1


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_router_that_gives_up_is_forgotten(bridge: Claiming, how: str) -> None:
    await bridge.serve("a")
    worker = await bridge.worker()
    router = await bridge.router("a")
    await router.send(asks(tokens()[0]))
    await worker.claim()
    getattr(router, how)()
    await until(lambda: not bridge.open, "the claim is forgotten")
    await worker.finish(tokens()[0])  # the worker's exchange ends some time: no harm
    again = await bridge.router("a")
    await again.send(asks(tokens()[1]))
    assert await worker.claim() == (tokens()[1], "a")


async def test_a_finish_for_nothing(bridge: Claiming) -> None:
    await bridge.serve("a")
    worker = await bridge.worker()
    await worker.finish(tokens()[0])
    worker.say(b"what?")
    worker.say(b"C" + tokens()[0] + b" a")
    router = await bridge.router("a")
    await router.send(asks(tokens()[1]))
    assert await worker.claim() == (tokens()[1], "a")
    await worker.finish(tokens()[1])
    await worker.finish(tokens()[1])
    assert (await router.message()).status == 200


async def test_the_replica_of_a_claim_goes(bridge: Claiming) -> None:
    """Its port takes nothing new, and what was decided stays until its exchange has ended."""
    await bridge.serve("a")
    worker = await bridge.worker()
    router = await bridge.router("a")
    await router.send(asks(tokens()[0]))
    await worker.claim()
    number = bridge.ports["a"]
    await bridge.retire("a")
    await router.nothing()
    await worker.finish(tokens()[0])
    answer = await router.message()
    assert answer.status == 200
    assert answer.closes
    with pytest.raises(ConnectionError):
        await asyncio.open_connection("127.0.0.1", number)
    del bridge.ports["a"]


async def test_a_change_of_the_port_leaves_claims_alone(bridge: Claiming) -> None:
    await bridge.serve("a")
    worker = await bridge.worker()
    router = await bridge.router("a")
    await router.send(asks(tokens()[0]))
    await worker.claim()
    await bridge.change("a", idle_timeout=0.01, first_byte_timeout=0.01)
    await router.nothing(0.1)
    await worker.finish(tokens()[0])
    assert (await router.message()).status == 200


async def test_the_bridge_ends(bridge: Claiming) -> None:
    await bridge.serve("a")
    worker = await bridge.worker()
    router = await bridge.router("a")
    await router.send(asks(tokens()[0]))
    await worker.claim()
    bridge.role.drain()
    await router.nothing()
    await worker.finish(tokens()[0])
    assert (await router.message()).closes


# --- the router's copy of the body


@pytest.mark.parametrize("size", [0, 1, 100_000, 3_000_000])
async def test_the_body_goes_nowhere(bridge: Claiming, size: int) -> None:
    (replica,) = await bridge.serve("a")
    worker = await bridge.worker()
    router = await bridge.router("a")
    for value in tokens()[:2]:
        asking = asyncio.create_task(router.send(asks(value, os.urandom(size))))
        assert await worker.claim() == (value, "a")
        await asking
        await router.nothing()
        await worker.finish(value)
        assert (await router.message()).status == 200
    assert replica.untouched


@pytest.mark.parametrize("cut", [1, 4, 20, 60, 100, -500])
async def test_a_head_that_comes_in_pieces(bridge: Claiming, cut: int) -> None:
    await bridge.serve("a")
    worker = await bridge.worker()
    router = await bridge.router("a")
    request = asks(tokens()[0], bytes(400))
    await router.send(request[:cut])
    await asyncio.sleep(0.01)
    await router.send(request[cut:])
    assert await worker.claim() == (tokens()[0], "a")
    await worker.finish(tokens()[0])
    assert (await router.message()).status == 200


@pytest.mark.parametrize("cut", [1, 2, 4, 20, 60, 100, -300])
@pytest.mark.parametrize("method", [b"POST", b"PUT", b"PROPFIND"])
async def test_a_head_in_pieces_that_asks_nothing(
    bridge: Claiming, method: bytes, cut: int
) -> None:
    (replica,) = await bridge.serve("a")
    replica.answers = reply(b"carried")
    router = await bridge.router("a")
    for _ in range(2):
        request = method + post(bytes(range(256)), PATH, *FIELDS)[4:]
        await router.send(request[:cut])
        await asyncio.sleep(0.01)
        await router.send(request[cut:])
        assert (await router.message()).body == b"carried"
    assert [r.body for r in replica.requests] == [bytes(range(256))] * 2


async def test_a_question_in_chunks_is_nobodys_and_never_carried(bridge: Claiming) -> None:
    """No router sends one; should it, the worker goes past it."""
    (replica,) = await bridge.serve("a")
    worker = await bridge.worker()
    for body in (b"0\r\n\r\n", chunked(b"abc", b"d" * 5000)):
        router = await bridge.router("a")
        fields = (f"X-Ask: {tokens()[0].decode()}", "Transfer-Encoding: chunked")
        answer = await router.ask(get(PATH, *fields, method="POST") + body)
        assert answer.status == 503
        assert answer["X-Gatewayd-Failure"] == "unclaimed"
        assert "X-Gatewayd-Replica" not in answer
    assert worker.silent
    assert replica.untouched


@pytest.mark.parametrize("request_", [get("/health"), get("/health", "X-Long: " + "y" * 3000)])
@pytest.mark.parametrize("pieces", [2, 5, 40])
async def test_a_probe_in_pieces(bridge: Claiming, request_: bytes, pieces: int) -> None:
    await bridge.serve("a")
    router = await bridge.router("a")
    size = -(-len(request_) // pieces)
    for _ in range(2):
        for at in range(0, len(request_), size):
            await router.send(request_[at : at + size])
            await asyncio.sleep(0.001)
        assert (await router.message()).status == 200


@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_only_posts_ask(bridge: Claiming, method: str) -> None:
    (replica,) = await bridge.serve("a")
    router = await bridge.router("a")
    answer = await router.ask(get(PATH, f"X-Ask: {tokens()[0].decode()}", method=method))
    assert answer.status == 503
    assert replica.untouched


async def test_a_request_behind_a_question_is_a_mistake(bridge: Claiming) -> None:
    await bridge.serve("a")
    worker = await bridge.worker()
    for number, late in enumerate((False, True)):
        router = await bridge.router("a")
        await router.send(asks(tokens()[number]) + (b"" if late else get("/health")))
        if late:
            await worker.claim()
            await router.send(get("/health"))
        assert await router.gone() == b""
        await until(lambda: not bridge.open, "nothing is held")


async def test_it_is_claimed_before_its_body_has_come(bridge: Claiming) -> None:
    await bridge.serve("a")
    worker = await bridge.worker()
    router = await bridge.router("a")
    value = tokens()[0]
    request = asks(value, bytes(1000))
    await router.send(request[:-500])
    assert await worker.claim() == (value, "a")
    await router.send(request[-500:])
    await router.nothing()
    await worker.finish(value)
    assert (await router.message()).status == 200
    # One that never comes does not hold up the end.
    value = tokens()[1]
    await router.send(asks(value, bytes(1000))[:-500])
    await worker.claim()
    await worker.finish(value)
    answer = await router.message()
    assert answer.status == 200
    assert answer.closes


async def test_the_router_leaves_while_a_large_body_is_held(bridge: Claiming) -> None:
    """Nothing has stopped the reading of its connection."""
    await bridge.serve("a")
    worker = await bridge.worker()
    router = await bridge.router("a")
    await router.send(asks(tokens()[0], bytes(1_000_000)))
    await worker.claim()
    await until(lambda: not bridge.plane._tasks, "it has all been read")
    router.close()
    await until(lambda: not bridge.open, "it is missed")


async def test_a_held_connection_is_not_idle(
    bridge: Claiming, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it is held, and however soon idle ones are closed."""
    monkeypatch.setattr("gatewayd.proxy.plane._SLOW_EVERY", 1)
    await bridge.serve("a")
    worker = await bridge.worker()
    held, idle = await bridge.router("a"), await bridge.router("a")
    await held.send(asks(tokens()[0]))
    await worker.claim()
    await worker.finish(tokens()[0])
    await held.message()
    await held.send(asks(tokens()[1]))
    await worker.claim()
    (server,) = bridge.plane.servers
    limits = replace(server._handler.limits, keepalive_timeout=0.05)
    server._handler.limits = limits
    assert await idle.gone() == b""
    assert b" 200 " in await held.upto(b"\r\n\r\n")
    await held.nothing(0.2)
    await worker.finish(tokens()[1])
    await held.expect(b"0\r\n\r\n")
    assert await held.gone() == b""  # now it is


# --- what is held for long


async def begun(router: Wire) -> bytes:
    """The head of an answer whose end is still to come."""
    head = await router.upto(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Transfer-Encoding: chunked\r\n" in head
    return head


async def test_the_answer_of_a_long_one_is_begun(bridge: Claiming) -> None:
    """So that the router forgets what it kept for the case that it has to ask again."""
    await bridge.serve("a")
    worker = await bridge.worker()
    router = await bridge.router("a")
    for value in tokens()[:3]:
        asked = asyncio.get_running_loop().time()
        await router.send(asks(value))
        await worker.claim()
        assert b"X-Gatewayd-Replica: a\r\n" in await begun(router)
        assert asyncio.get_running_loop().time() - asked > 0.2
        await router.nothing()
        assert bridge.open == 1
        await worker.finish(value)
        await router.expect(b"0\r\n\r\n")  # and the connection serves again
        assert bridge.open == 0


async def test_a_worker_that_dies_ends_what_was_begun(bridge: Claiming) -> None:
    await bridge.serve("a")
    worker = await bridge.worker()
    router = await bridge.router("a")
    await router.send(asks(tokens()[0]))
    await worker.claim()
    await begun(router)
    worker.die()
    await router.expect(b"0\r\n\r\n")
    assert bridge.open == 0


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_router_that_leaves_what_was_begun(bridge: Claiming, how: str) -> None:
    await bridge.serve("a")
    worker = await bridge.worker()
    router = await bridge.router("a")
    await router.send(asks(tokens()[0]))
    await worker.claim()
    await begun(router)
    getattr(router, how)()
    await until(lambda: not bridge.open, "it is missed")
    await worker.finish(tokens()[0])


async def test_no_answer_is_begun_before_the_request_has_come(bridge: Claiming) -> None:
    await bridge.serve("a")
    worker = await bridge.worker()
    router = await bridge.router("a")
    request = asks(tokens()[0], bytes(1000))
    await router.send(request[:-500])
    await worker.claim()
    await router.nothing(0.4)
    await router.send(request[-500:])
    await worker.finish(tokens()[0])
    assert (await router.message()).status == 200


async def test_one_that_was_begun_ends_with_its_port(bridge: Claiming) -> None:
    await bridge.serve("a")
    worker = await bridge.worker()
    router = await bridge.router("a")
    await router.send(asks(tokens()[0]))
    await worker.claim()
    await begun(router)
    await bridge.retire("a")
    await worker.finish(tokens()[0])
    assert await router.rest() == b"0\r\n\r\n"
    del bridge.ports["a"]


async def test_the_timer_rests_when_nothing_is_held(bridge: Claiming) -> None:
    await bridge.serve("a")
    worker = await bridge.worker()
    router = await bridge.router("a")
    for value in tokens()[:10]:
        await router.send(asks(value))
        await worker.claim()
        await worker.finish(value)
        await router.message()
    await until(lambda: bridge.claims._timer is None, "it has stopped")
    assert not bridge.claims._young
