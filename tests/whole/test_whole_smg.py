"""The second router in the whole: `router: {type: smg}`, carrying and only deciding."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from waiting import until
from whole_gateway import gatewayd
from whole_routed import WAY, Routed, routed, routers_dead
from whole_streams import begin

pytestmark = pytest.mark.needs("smg")
BOTH_MODES = pytest.mark.parametrize("mode", ["through", "steer"])
SMG = {"type": "smg", "policy": "cache_aware"}


@BOTH_MODES
async def test_replicas_come_and_go_and_so_does_the_router(home: Path, mode: str) -> None:
    async with routed(home, mode, **SMG) as (whole,):
        gateway, clients = whole.gateway, whole.clients
        gateway.allow(f"router of main/{mode} was ended by SIGKILL")
        pid = await whole.pid()
        assert await whole.ways(4) == {WAY[mode]}
        assert (await clients.stream(6)).end == "whole"
        for replica in whole.replicas:
            await gateway.remove(mode, replica.name)
        assert (await clients.post())[0] == 503
        for replica in whole.replicas:
            await gateway.add(mode, replica.name, str(replica.path))
        assert await whole.pid() == pid
        assert await whole.ways(4) == {WAY[mode]}

        streams = await begin(clients, 4, tokens=30)
        async with routers_dead(gateway, pid):
            assert await whole.ways(4) == {"fallback"}  # straight to the replicas
        assert {await s.over() for s in streams} == {"cut" if mode == "through" else "whole"}
        await until(lambda: whole.is_another(pid), "another router serves")
        await until(whole.is_back, "requests go through it again")
        assert {r.running for r in whole.replicas} == {0}
        # The router's key is nobody else's business.
        sent = [request for r in whole.replicas for request in r.requests]
        assert not [request for request in sent if request.header("authorization")]


async def test_it_decides_and_the_bytes_go_straight(home: Path) -> None:
    async with routed(home, "steer", **SMG) as (whole,):
        await whole.pid()
        await bytes_arrive_as_they_were_sent(whole)
        await what_it_refuses_a_replica_may_still_take(whole)
        await held_requests_are_spread_and_prefixes_stay(whole)


async def bytes_arrive_as_they_were_sent(whole: Routed) -> None:
    message = {"role": "user", "content": "hi", "unknown": [1.50]}
    raw = json.dumps({"model": "m", "messages": [message], "cache_salt": "s"}, indent=3).encode()
    url = f"{whole.gateway.url}/v1/chat/completions"
    sent = {
        "Host": "steer.test",
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

    await until(counted)


async def held_requests_are_spread_and_prefixes_stay(whole: Routed) -> None:
    for replica in whole.replicas:
        replica.gate.clear()
    prompts = [f"{letter} " * 600 for letter in "abcdefgh"]
    asked = []
    for prompt in prompts:  # one after the other: decisions of the same moment know no loads
        asked.append(asyncio.create_task(whole.clients.post(prompt=prompt, max_tokens=1)))
        await until(lambda: sum(r.running for r in whole.replicas) == len(asked))
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
