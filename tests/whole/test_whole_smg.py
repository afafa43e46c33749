"""The second router in the whole: `router: {type: smg}`, carrying and only deciding."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from whole_gateway import Gateway, eventually, gatewayd
from whole_replicas import Replica
from whole_streams import Clients, begin

pytestmark = pytest.mark.needs("smg")
BOTH_MODES = pytest.mark.parametrize("mode", ["through", "steer"])
WAY = {"through": "through", "steer": "steered"}


@dataclass
class Routed:
    gateway: Gateway
    replicas: list[Replica]
    clients: Clients

    async def ways(self, requests: int) -> set[str]:
        """How so many requests went, all of which succeed."""
        for _ in range(requests):
            status, answer = await self.clients.post(max_tokens=1)
            assert status == 200, answer
        return {*await self.gateway.ways(self.clients.ids[-requests:])}


@asynccontextmanager
async def routed(home: Path, mode: str, policy: str = "cache_aware") -> AsyncIterator[Routed]:
    # The router knows the models of its targets; "m" is what the clients ask for.
    replicas = [Replica(f"r{i}", home / f"r{i}.sock", model="m", gap_s=0.03) for i in range(2)]
    service = {
        "name": "llama",
        "router": {"type": "smg", "mode": mode, "policy": policy},
        "replicas": [{"id": r.name, "socket": str(r.path)} for r in replicas],
    }
    async with AsyncExitStack() as stack:
        for replica in replicas:
            await stack.enter_async_context(replica)
        gateway = await stack.enter_async_context(Gateway(home, [service]))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        await gateway.router_pid("llama")
        yield Routed(gateway, replicas, Clients(gateway.url, "llama", session))


@BOTH_MODES
async def test_replicas_come_and_go_and_so_does_the_router(home: Path, mode: str) -> None:
    async with routed(home, mode) as whole:
        gateway, clients = whole.gateway, whole.clients
        gateway.allow("router of main/llama was ended by SIGKILL")
        pid = await gateway.router_pid("llama")
        assert await whole.ways(4) == {WAY[mode]}
        assert (await clients.stream(6)).end == "whole"
        for replica in whole.replicas:
            await gateway.remove("llama", replica.name)
        assert (await clients.post())[0] == 503
        for replica in whole.replicas:
            await gateway.add("llama", replica.name, replica.path)
        assert await gateway.router_pid("llama") == pid
        assert await whole.ways(4) == {WAY[mode]}

        streams = await begin(clients, 4, tokens=30)
        os.kill(pid, signal.SIGKILL)

        async def noticed() -> bool:
            return (await gateway.service("llama"))["router"]["pid"] != pid

        await eventually(noticed, 2)
        assert WAY[mode] not in await whole.ways(4)  # straight to the replicas
        assert {await s.over() for s in streams} == {"cut" if mode == "through" else "whole"}
        assert await gateway.router_pid("llama") != pid

        async def back() -> bool:
            return await whole.ways(3) == {WAY[mode]}

        await eventually(back, 5, "requests go through it again")
        assert {r.running for r in whole.replicas} == {0}
        # The router's key is nobody else's business.
        sent = [request for r in whole.replicas for request in r.requests]
        assert not [request for request in sent if request.header("authorization")]


async def test_it_decides_and_the_bytes_go_straight(home: Path) -> None:
    async with routed(home, "steer") as whole:
        await bytes_arrive_as_they_were_sent(whole)
        await what_it_refuses_a_replica_may_still_take(whole)
        await held_requests_are_spread_and_prefixes_stay(whole)


async def bytes_arrive_as_they_were_sent(whole: Routed) -> None:
    message = {"role": "user", "content": "hi", "unknown": [1.50]}
    raw = json.dumps({"model": "m", "messages": [message], "cache_salt": "s"}, indent=3).encode()
    url = f"{whole.gateway.url}/v1/chat/completions"
    sent = {
        "Host": "llama.test",
        "Content-Type": "application/json",
        "Idempotency-Key": "once",
    }
    async with whole.clients.session.post(url, data=raw, headers=sent) as response:
        assert response.status == 200
        assert not [name for name in response.headers if name.lower().startswith("x-smg-")]
        request_id = response.headers["X-Request-Id"]
    (got,) = [request for r in whole.replicas for request in r.inferences]
    assert got.body == raw
    assert got.header("idempotency-key") == ["once"]
    assert await whole.gateway.ways([request_id]) == ["steered"]


async def what_it_refuses_a_replica_may_still_take(whole: Routed) -> None:
    """A model that none of its targets names, and a prompt that it cannot read."""
    clients = whole.clients
    assert (await clients.post(model="another", max_tokens=1))[0] == 200
    assert (await clients.post(messages=[{"role": "new"}], max_tokens=1))[0] == 200
    assert await whole.gateway.ways(clients.ids[-2:]) == ["fallback", "fallback"]

    async def counted() -> bool:
        metrics = await whole.gateway.metrics()
        return metrics.total("gatewayd_steering_total", outcome="refused") == 2

    await eventually(counted, 5)


async def held_requests_are_spread_and_prefixes_stay(whole: Routed) -> None:
    for replica in whole.replicas:
        replica.gate.clear()
    prompts = [f"{letter} " * 600 for letter in "abcdefgh"]
    asked = []
    for prompt in prompts:  # one after the other: decisions of the same moment know no loads
        asked.append(asyncio.create_task(whole.clients.post(prompt=prompt, max_tokens=1)))
        await eventually(lambda: sum(r.running for r in whole.replicas) == len(asked), 5)
    assert {r.running for r in whole.replicas} == {len(prompts) // 2}
    for replica in whole.replicas:
        replica.gate.set()
    homes = [(await one)[1]["id"] for one in asked]
    for question in ("again", "and again"):
        answers = [await whole.clients.post(prompt=p + question, max_tokens=1) for p in prompts]
        assert [answer["id"] for _, answer in answers] == homes


async def test_check_knows_its_flags(home: Path) -> None:
    file = home / "gateway.yaml"
    file.write_text(
        "domain: test\nlisten: {http: '127.0.0.1:0'}\n"
        "services:\n- {name: llama, router: {type: smg, policy: prefix_hash}}\n"
    )
    code, out, err = await gatewayd("check", "-c", str(file))
    assert code != 0
    assert "prefix_hash does not work here" in out + err
