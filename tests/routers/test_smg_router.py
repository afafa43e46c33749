"""The real smg under our plug-in: the family's promises, and what is its own."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from live_router import Client, api_of, engines, running, settle, targets
from router_promises import Promises
from waiting import until

from gatewayd.routers.http_router import HttpRouter
from gatewayd.routers.smg.options import FLAGS

ROUTER = "smg"
CHAT = "/v1/chat/completions"
STREAM = {"model": "fake-model", "messages": [{"role": "user", "content": "hi"}], "stream": True}
pytestmark = [pytest.mark.needs("smg"), pytest.mark.asyncio(loop_scope="module")]


class TestPromises(Promises):
    flags = FLAGS
    introspection = frozenset(
        {
            *{"/health", "/server_info", "/model_info", "/v1/models", "/version"},
            *{"/loads", "/v1/loads", "/get_load", "/metrics"},  # every 10 s
        }
    )
    nobody = 404


async def loads(client: Client) -> list[int]:
    """How many requests it believes to be running, per target."""
    async with client.session.get(f"{client.url}/workers", headers=client.headers) as response:
        return sorted(worker["load"] for worker in (await response.json())["workers"])


async def until_loads(client: Client, *wanted: int) -> None:
    async def as_wanted() -> bool:
        return await loads(client) == sorted(wanted)

    await until(as_wanted)


async def test_asking_for_a_target_a_second_time_is_no_fault(router: HttpRouter) -> None:
    async with engines(1) as (engine,):
        api = await api_of(router)
        try:
            assert await api.add(engine.url) is not None
            assert await api.add(engine.url) is None  # it is being added
            await settle(router, targets(engine))
            assert await api.add(engine.url) is None  # it is there
        finally:
            await api.aclose()


async def test_it_counts_what_is_held_and_what_has_ended(
    router: HttpRouter, client: Client
) -> None:
    """As when it decides only: the bridge ends half of them, and the edge hangs up on half."""
    async with engines(2) as (one, two):
        await settle(router, targets(one, two))
        one.gate.clear()
        two.gate.clear()
        held = []
        for number in range(20):
            held.append(asyncio.ensure_future(client.chat(f"{number} " * 20)))
            await until(lambda: one.running + two.running == number + 1)  # noqa: B023
        assert sum(await loads(client)) == 20
        for task in held[:10]:
            task.cancel()
        await until(lambda: one.running + two.running == 10)
        await until_loads(client, one.running, two.running)
        one.gate.set()
        two.gate.set()
        assert [(await task)[0] for task in held[10:]] == [200] * 10
        await until_loads(client, 0, 0)


async def test_quiet_exchanges_do_not_count_against_their_target(tmp_path: Path) -> None:
    """A decision is held open without a byte for as long as the exchange takes elsewhere."""
    async with (
        running(ROUTER, tmp_path, "round_robin", worker_wedge_secs="1") as router,
        engines(1) as (engine,),
        aiohttp.ClientSession() as session,
    ):
        client = Client(router, session)
        await settle(router, targets(engine))
        engine.gate.clear()
        held = [asyncio.ensure_future(client.chat(stream=True)) for _ in range(8)]
        await until(lambda: engine.running == 8)
        await asyncio.sleep(1.5)  # nothing may happen
        held.append(asyncio.ensure_future(client.chat()))
        await until(lambda: engine.running == 9)
        engine.gate.set()
        async with asyncio.timeout(30):
            assert all(status == 200 for status, _, _ in await asyncio.gather(*held))


async def test_a_model_that_no_target_has_is_refused_before_anything_is_sent(
    router: HttpRouter, client: Client
) -> None:
    async with engines(2) as pair:
        await settle(router, targets(*pair))
        status, code, _ = await client.chat(model="another")
        assert (status, code) == (404, "model_not_found")
        assert b"model_not_found" in router.traits.unsent_errors
        assert pair[0].inferences + pair[1].inferences == []


async def test_a_stream_passes_unchanged_and_tells_no_inner_address(
    router: HttpRouter, client: Client
) -> None:
    async with engines(1) as (engine,):
        await settle(router, targets(engine))

        async def stream(base: str) -> tuple[bytes, dict[str, str]]:
            async with client.session.post(
                base + CHAT, json=STREAM, headers=client.headers
            ) as response:
                return await response.read(), {k.lower(): v for k, v in response.headers.items()}

        direct, _ = await stream(engine.url)
        through, headers = await stream(client.url)
        assert through == direct
        kept = {k: v for k, v in headers.items() if k.encode() not in router.traits.strip_response}
        assert not [k for k, v in kept.items() if str(engine.port) in v]
        assert not [k for k in kept if k.startswith(("access-control-", "x-smg-"))]


async def test_a_client_that_leaves_a_quiet_stream_is_known_at_once(
    router: HttpRouter, client: Client
) -> None:
    async with engines(1) as (engine,):
        await settle(router, targets(engine))
        engine.gate.clear()
        response = await client.session.post(client.url + CHAT, json=STREAM, headers=client.headers)
        response.close()
        async with asyncio.timeout(1):
            await until(lambda: engine.inferences[0].outcome == "client gone")


async def test_policies_that_read_no_prompt_hand_it_on_as_it_came(tmp_path: Path) -> None:
    odd: dict[str, Any] = {"messages": [{"role": "unheard of", "content": 1}], "new_field": [1.50]}
    raw = json.dumps(odd, indent=3).encode()
    async with (
        running(ROUTER, tmp_path, "round_robin") as router,
        engines(2) as pair,
        aiohttp.ClientSession() as session,
    ):
        client = Client(router, session)
        await settle(router, targets(*pair))
        for _ in range(4):
            async with session.post(client.url + CHAT, data=raw, headers=client.headers) as answer:
                assert answer.status == 200
        assert [request.body for e in pair for request in e.inferences] == [raw] * 4
        assert [len(engine.inferences) for engine in pair] == [2, 2]


@pytest.mark.parametrize(
    ("policy", "flags"),
    [("manual", {}), ("consistent_hashing", {}), ("random", {"sticky_sessions": None})],
)
async def test_a_routing_key_sticks_to_a_target(
    tmp_path: Path, policy: str, flags: dict[str, str | None]
) -> None:
    async with (
        running(ROUTER, tmp_path, policy, **flags) as router,
        engines(2) as pair,
        aiohttp.ClientSession() as session,
    ):
        client = Client(router, session)
        header = router.traits.routing_key_header.decode()
        await settle(router, targets(*pair))
        used = set()
        for number in range(12):
            before = [len(engine.inferences) for engine in pair]
            for question in range(3):
                key = {header: f"user-{number}"}
                assert (await client.chat(f"{question} of {number}", headers=key))[0] == 200
            grown = [len(e.inferences) - n for e, n in zip(pair, before, strict=True)]
            assert sorted(grown) == [0, 3]
            used.add(grown[0])
        assert used == {0, 3}  # not all of them to one
