"""What the router has learned about replicas that stay survives that others come and go."""

from __future__ import annotations

import asyncio
import itertools
import random
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
from whole_gateway import Gateway
from whole_replicas import Replica
from whole_streams import Clients

PREFIXES = 12
WAYS = {"through": "through", "steer": "steered"}


def prefixes() -> list[str]:
    """Long ones that have nothing in common."""
    chance = random.Random(11)  # noqa: S311
    return ["".join(chance.choices("abcdefghij ", k=3000)) for _ in range(PREFIXES)]


async def test_prefixes_stay_where_they_are_cached_while_others_scale(home: Path) -> None:
    replicas = {
        mode: {f"r{i}": Replica(f"r{i}", home / f"{mode}{i}.sock", gap_s=0.05) for i in range(4)}
        for mode in WAYS
    }
    services = [
        {
            "name": mode,
            "router": {"type": "sglang", "mode": mode, "policy": "cache_aware"},
            "replicas": [
                {"id": name, "socket": str(replicas[mode][name].path)} for name in ("r0", "r1")
            ],
        }
        for mode in WAYS
    ]
    async with AsyncExitStack() as stack:
        for replica in itertools.chain(*(group.values() for group in replicas.values())):
            await stack.enter_async_context(replica)
        gateway = await stack.enter_async_context(Gateway(home, services))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            for mode in WAYS:
                clients = Clients(gateway.url, mode, session)
                sockets = {name: str(replica.path) for name, replica in replicas[mode].items()}
                group.create_task(prefixes_stay(gateway, mode, clients, sockets))


async def prefixes_stay(
    gateway: Gateway, mode: str, clients: Clients, sockets: dict[str, str]
) -> None:
    texts = prefixes()
    await gateway.add(mode, "r2", sockets["r2"])
    router = await gateway.router_pid(mode)

    async def ask(numbers: list[int], question: str) -> dict[int, str]:
        """Which replica answered to each prefix, all at once."""
        answers = await asyncio.gather(*(clients.post(prompt=texts[n] + question) for n in numbers))
        assert all(status == 200 for status, _ in answers)
        return {n: str(body["id"]) for n, (_, body) in zip(numbers, answers, strict=True)}

    everything = list(range(PREFIXES))
    home_of = await ask(everything, " first question")  # at once, so that they are spread
    assert set(home_of.values()) == {"r0", "r1", "r2"}
    assert await ask(everything, " second question") == home_of
    await gateway.add(mode, "r3", sockets["r3"])
    assert await gateway.router_pid(mode) == router
    assert await ask(everything, " after one came") == home_of
    await gateway.drain(mode, "r1", 5)
    untouched = [n for n, replica in home_of.items() if replica != "r1"]
    assert await ask(untouched, " after one left") == {n: home_of[n] for n in untouched}
    await gateway.remove(mode, "r3")
    assert await ask(untouched, " after another") == {n: home_of[n] for n in untouched}
    # The orphans found a new home, and it is one of those that are left.
    orphans = [n for n in everything if n not in untouched]
    moved = await ask(orphans, " once more")
    assert set(moved.values()) <= {"r0", "r2"}
    assert await ask(orphans, " and again") == moved
    assert await gateway.router_pid(mode) == router
    assert {*await gateway.ways(clients.ids)} == {WAYS[mode]}
