"""A router's policies mean the same whether it carries the requests or only decides."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from waiting import until
from whole_gateway import Gateway
from whole_replicas import Replica

pytestmark = pytest.mark.asyncio(loop_scope="module")

REPLICAS = 4
PREFIXES = 100  # many, so that the share of one is small beside NOISE
REQUESTS = 500
AT_ONCE = 16
NOISE = 0.1  # of a share
STICKY = ("manual", "consistent_hashing")
BY_SESSION = {"routing_key_header": "X-Session"}


@dataclass
class Whole:
    gateway: Gateway
    session: aiohttp.ClientSession

    async def ask(self, service: str, prompt: str = "hi", **headers: str) -> str:
        """Which replica answered."""
        async with self.session.post(
            f"{self.gateway.url}/v1/chat/completions",
            json={
                "model": "m",
                "max_tokens": 1,
                "messages": [{"role": "user", "content": prompt}],
            },
            headers={"Host": f"{service}.test", **headers},
        ) as response:
            assert response.status == 200
            return str((await response.json())["id"])

    async def ways(self, service: str, count: int) -> set[str]:
        """By which ways the requests of a service went, once so many are logged."""

        def lines() -> list[str]:
            return [x for x in self.gateway.access_lines() if x.split()[2] == service]

        await until(lambda: len(lines()) >= count, f"{count} of {service} are logged")
        return {line.split()[4] for line in lines()}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def whole(shared_home: Path) -> AsyncIterator[Whole]:
    replicas = [Replica(f"r{i}", shared_home / f"r{i}.sock", gap_s=0.005) for i in range(REPLICAS)]
    routers: dict[str, dict[str, Any]] = {
        "cached": {"policy": "cache_aware", "mode": "steer"},
        "carried": {"policy": "cache_aware", "mode": "through"},
        "turns": {"policy": "round_robin"},
        **{name.replace("_", "-"): {"policy": name, **BY_SESSION} for name in STICKY},
    }
    services = [
        {
            "name": name,
            "router": {"type": "sglang", **router},
            "replicas": [{"id": r.name, "socket": str(r.path)} for r in replicas],
        }
        for name, router in routers.items()
    ]
    for replica in replicas:
        await replica.start()
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
    try:
        async with Gateway(shared_home, services) as gateway, session:
            await asyncio.gather(*(gateway.router_pid(name) for name in routers))
            yield Whole(gateway, session)
    finally:
        for replica in replicas:
            await replica.stop()


@dataclass
class Spread:
    """`affinity` is the share of requests that went where their prefix is at home."""

    affinity: float
    shares: list[float]


async def spread(whole: Whole, service: str) -> Spread:
    """The same requests in the same order for everybody: shared prefixes, a different end each."""
    chance = random.Random(5)  # noqa: S311
    prefixes = ["".join(chance.choices("abcdefghij ", k=1500)) for _ in range(PREFIXES)]
    order = [n % PREFIXES for n in range(REQUESTS)]
    chance.shuffle(order)
    waiting = iter(list(enumerate(order)))
    found: dict[int, Counter[str]] = defaultdict(Counter)

    async def one() -> None:
        for number, prefix in waiting:
            replica = await whole.ask(service, f"{prefixes[prefix]} question {number}")
            found[prefix][replica] += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(one())
    totals: Counter[str] = sum(found.values(), Counter())
    assert totals.total() == REQUESTS
    at_home = sum(counts.most_common(1)[0][1] for counts in found.values())
    return Spread(at_home / REQUESTS, sorted(totals[f"r{i}"] / REQUESTS for i in range(REPLICAS)))


async def test_prefixes_find_their_home_as_if_the_router_carried_them(whole: Whole) -> None:
    steered = await spread(whole, "cached")
    carried = await spread(whole, "carried")
    assert await whole.ways("cached", REQUESTS) == {"steered"}
    assert await whole.ways("carried", REQUESTS) == {"through"}
    assert steered.affinity > 0.9, steered
    assert abs(steered.affinity - carried.affinity) < NOISE, (steered, carried)
    for ours, theirs in zip(steered.shares, carried.shares, strict=True):
        assert abs(ours - theirs) < NOISE, (steered, carried)
    assert steered.shares[-1] < 0.25 + NOISE, steered


async def test_turns_are_taken_evenly(whole: Whole) -> None:
    asked = [await whole.ask("turns") for _ in range(40)]
    assert Counter(asked) == {f"r{i}": 10 for i in range(REPLICAS)}
    at_once = await asyncio.gather(*(whole.ask("turns") for _ in range(40)))
    assert Counter(at_once) == {f"r{i}": 10 for i in range(REPLICAS)}
    assert await whole.ways("turns", 80) == {"steered"}


@pytest.mark.parametrize("policy", STICKY)
async def test_a_session_stays_where_it_is(whole: Whole, policy: str) -> None:
    service = policy.replace("_", "-")
    homes = {}
    for number in range(12):
        key = f"session-{number}"
        homes[key] = await whole.ask(service, **{"X-Session": key})
    assert len(set(homes.values())) > 1
    for _ in range(3):
        again = await asyncio.gather(
            *(whole.ask(service, f"{key} asks", **{"X-Session": key}) for key in homes)
        )
        assert again == list(homes.values())
    assert await whole.ways(service, 48) == {"steered"}


@pytest.mark.parametrize("policy", STICKY)
@pytest.mark.parametrize("name", ["X-SMG-Routing-Key", "X-SMG-Target-Worker"])
async def test_a_client_does_not_choose_in_the_routers_words(
    whole: Whole, policy: str, name: str
) -> None:
    """Without the operator's field nobody sticks: 24 requests with one key all over the place."""
    service = policy.replace("_", "-")
    asked = [await whole.ask(service, f"n {n}", **{name: "0"}) for n in range(24)]
    assert len(set(asked)) > 1
    # And a session is not moved by them.
    homes = {
        await whole.ask(service, f"m {n}", **{"X-Session": "mine", name: str(n)}) for n in range(8)
    }
    assert len(homes) == 1
