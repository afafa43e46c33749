"""The router's copy of a body that asks: read, and sent nowhere."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace

import pytest
from claiming import FIELDS, PATH, Claiming, asks, tokens
from conversation import chunked, get, post, reply
from waiting import until

# --- the router's copy of the body


@pytest.mark.parametrize("size", [0, 1, 100_000, 3_000_000])
async def test_the_body_goes_nowhere(claiming: Claiming, size: int) -> None:
    (replica,) = await claiming.serve("a")
    worker = await claiming.worker()
    router = await claiming.router("a")
    for value in tokens()[:2]:
        asking = asyncio.create_task(router.send(asks(value, os.urandom(size))))
        assert await worker.claim() == (value, "a")
        await asking
        await router.nothing()
        await worker.finish(value)
        assert (await router.message()).status == 200
    assert replica.untouched


@pytest.mark.parametrize("cut", [1, 4, 20, 60, 100, -500])
async def test_a_head_that_comes_in_pieces(claiming: Claiming, cut: int) -> None:
    await claiming.serve("a")
    worker = await claiming.worker()
    router = await claiming.router("a")
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
    claiming: Claiming, method: bytes, cut: int
) -> None:
    (replica,) = await claiming.serve("a")
    replica.answers = reply(b"carried")
    router = await claiming.router("a")
    for _ in range(2):
        request = method + post(bytes(range(256)), PATH, *FIELDS)[4:]
        await router.send(request[:cut])
        await asyncio.sleep(0.01)
        await router.send(request[cut:])
        assert (await router.message()).body == b"carried"
    assert [r.body for r in replica.requests] == [bytes(range(256))] * 2


async def test_a_question_in_chunks_is_nobodys_and_never_carried(claiming: Claiming) -> None:
    """No router sends one; should it, the worker goes past it."""
    (replica,) = await claiming.serve("a")
    worker = await claiming.worker()
    for body in (b"0\r\n\r\n", chunked(b"abc", b"d" * 5000)):
        router = await claiming.router("a")
        fields = (f"X-Ask: {tokens()[0].decode()}", "Transfer-Encoding: chunked")
        answer = await router.ask(get(PATH, *fields, method="POST") + body)
        assert answer.status == 503
        assert answer["X-Gatewayd-Failure"] == "unclaimed"
        assert "X-Gatewayd-Replica" not in answer
    assert worker.silent
    assert replica.untouched


@pytest.mark.parametrize("request_", [get("/health"), get("/health", "X-Long: " + "y" * 3000)])
@pytest.mark.parametrize("pieces", [2, 5, 40])
async def test_a_probe_in_pieces(claiming: Claiming, request_: bytes, pieces: int) -> None:
    await claiming.serve("a")
    router = await claiming.router("a")
    size = -(-len(request_) // pieces)
    for _ in range(2):
        for at in range(0, len(request_), size):
            await router.send(request_[at : at + size])
            await asyncio.sleep(0.001)
        assert (await router.message()).status == 200


@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_only_posts_ask(claiming: Claiming, method: str) -> None:
    (replica,) = await claiming.serve("a")
    router = await claiming.router("a")
    answer = await router.ask(get(PATH, f"X-Ask: {tokens()[0].decode()}", method=method))
    assert answer.status == 503
    assert replica.untouched


async def test_a_request_behind_a_question_is_a_mistake(claiming: Claiming) -> None:
    await claiming.serve("a")
    worker = await claiming.worker()
    for number, late in enumerate((False, True)):
        router = await claiming.router("a")
        await router.send(asks(tokens()[number]) + (b"" if late else get("/health")))
        if late:
            await worker.claim()
            await router.send(get("/health"))
        assert await router.gone() == b""
        await until(lambda: not claiming.open, "nothing is held")


async def test_it_is_claimed_before_its_body_has_come(claiming: Claiming) -> None:
    await claiming.serve("a")
    worker = await claiming.worker()
    router = await claiming.router("a")
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


async def test_the_router_leaves_while_a_large_body_is_held(claiming: Claiming) -> None:
    """Nothing has stopped the reading of its connection."""
    await claiming.serve("a")
    worker = await claiming.worker()
    router = await claiming.router("a")
    await router.send(asks(tokens()[0], bytes(1_000_000)))
    await worker.claim()
    await until(lambda: not claiming.plane._tasks, "it has all been read")
    router.close()
    await until(lambda: not claiming.open, "it is missed")


async def test_a_held_connection_is_not_idle(
    claiming: Claiming, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it is held, and however soon idle ones are closed."""
    monkeypatch.setattr("gatewayd.proxy.sweeper._SLOW_S", 0.01)
    await claiming.serve("a")
    worker = await claiming.worker()
    held, idle = await claiming.router("a"), await claiming.router("a")
    await held.send(asks(tokens()[0]))
    await worker.claim()
    await worker.finish(tokens()[0])
    await held.message()
    await held.send(asks(tokens()[1]))
    await worker.claim()
    (server,) = claiming.plane.servers
    limits = replace(server._handler.limits, keepalive_timeout=0.05)
    server._handler.limits = limits
    assert await idle.gone() == b""
    assert b" 200 " in await held.upto(b"\r\n\r\n")
    await held.nothing(0.2)
    await worker.finish(tokens()[1])
    await held.expect(b"0\r\n\r\n")
    assert await held.gone() == b""  # now it is
