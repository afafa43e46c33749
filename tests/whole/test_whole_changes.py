"""Replicas come and go 200 times through the admin address under 20 streams and steady posts, and
nothing is lost: straight to the replicas, through the real router, and steered by it; all three at
once, so 600 times in one gateway."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from whole_gateway import Gateway
from whole_replicas import Replica
from whole_streams import Broken, Clients, Heard, Windows

CHANGES = 200
STREAMS = 20
POSTERS = 3
TOKENS = 20
THROUGH = {"type": "sglang", "mode": "through"}
STEER = {"type": "sglang", "mode": "steer"}


@dataclass
class Load:
    """Streams and posts until told to stop; what they met is in `streams` and `posts`."""

    clients: Clients
    windows: Windows
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    streams: Counter[str] = field(default_factory=Counter)
    posts: Counter[str] = field(default_factory=Counter)
    running: set[str] = field(default_factory=set)

    async def stream(self) -> None:
        while not self.stop.is_set():
            began = time.monotonic()
            try:
                heard: Heard = await self.clients.stream(TOKENS)
            except Broken as error:
                self._excuse(error, began)
                self.streams["no replica"] += 1
                await asyncio.sleep(0.02)
                continue
            assert heard.end == "whole", f"cut after {heard.tokens} tokens of {heard.replica}"
            self.streams[heard.end] += 1

    async def post(self) -> None:
        while not self.stop.is_set():
            began = time.monotonic()
            status, answer = await self.clients.post(max_tokens=1)
            if status == 200:
                assert answer["choices"][0]["message"]["content"] == "token 0 "  # type: ignore[index]
                self.posts["answered"] += 1
            else:
                self._excuse(Broken(f"{status}: {answer}"), began)
                self.posts["no replica"] += 1
            await asyncio.sleep(0.03)

    def _excuse(self, error: Broken, began: float) -> None:
        """Without a replica a 503 is right; with one nothing is."""
        no_replica = str(error).startswith("503") and "no_ready_replica" in str(error)
        if not no_replica or not self.windows.overlap(began, time.monotonic()):
            raise error


class Operator:
    """Makes changes one after the other, and checks that the others are left alone."""

    def __init__(
        self, gateway: Gateway, service: str, replicas: list[Replica], windows: Windows
    ) -> None:
        self.gateway = gateway
        self.service = service
        self.sockets = {replica.name: replica.path for replica in replicas}
        self.there: list[str] = []
        self.windows = windows
        self.changes = 0
        self.zeros = 0
        self.ports: dict[str, int] = {}
        self.chance = random.Random(7)  # noqa: S311

    async def make(self, changes: int) -> None:
        while self.changes < changes:
            if self.changes % 40 == 20:
                await self._to_zero_and_back()
            elif len(self.there) < 2 or (
                len(self.there) < len(self.sockets) and self.chance.random() < 0.5
            ):
                await self.add(self.chance.choice([*self.sockets.keys() - {*self.there}]))
            else:
                await self.leave(self.chance.choice(self.there))

    async def add(self, name: str) -> None:
        path = self.sockets[name]
        assert path is not None
        await self.gateway.add(self.service, name, path)
        if not self.there:
            self.windows.closes()
        self.there.append(name)
        await self._changed(but=name)

    async def leave(self, name: str) -> None:
        self.there.remove(name)
        if not self.there:
            self.zeros += 1
            self.windows.opens()
        if self.chance.random() < 0.5:
            await self.gateway.remove(self.service, name)
        else:
            await self.gateway.drain(self.service, name, 0.05)  # streams that run longer go on
        await self._changed(but=name)

    async def _to_zero_and_back(self) -> None:
        for name in list(self.there):
            await self.leave(name)
        await asyncio.sleep(0.05)
        for name in list(self.sockets)[:2]:
            await self.add(name)

    async def _changed(self, but: str) -> None:
        """Nobody else's bridge port moved."""
        self.changes += 1
        replicas = (await self.gateway.service(self.service))["replicas"]
        assert {r["id"] for r in replicas} == {*self.there}
        ports = {r["id"]: r["bridge_port"] for r in replicas}
        for name, port in self.ports.items():
            assert name == but or name not in ports or ports[name] == port, (name, port, ports)
        self.ports.update({name: port for name, port in ports.items() if port is not None})
        await asyncio.sleep(self.chance.choice((0, 0, 0.05)))  # bursts of changes, and pauses


WAYS = {"direct": None, "through": THROUGH, "steered": STEER}


async def test_two_hundred_changes_under_load_lose_nothing(home: Path) -> None:
    replicas = {
        way: [Replica(f"{way}{i}", home / f"{way}{i}.sock", gap_s=0.12) for i in range(5)]
        for way in WAYS
    }
    services = [
        {"name": way, "model": "m", "router": router, "replicas": []}
        for way, router in WAYS.items()
    ]
    async with AsyncExitStack() as stack:
        for replica in itertools.chain(*replicas.values()):
            await stack.enter_async_context(replica)
        gateway = await stack.enter_async_context(Gateway(home, services))
        session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        )
        async with asyncio.timeout(90), asyncio.TaskGroup() as group:
            for way in WAYS:
                group.create_task(changed_under_load(gateway, way, replicas[way], session))
        # A router that has no target yet is no replica's failure.
        metrics = await gateway.metrics()
        name = "gatewayd_upstream_errors_total"
        assert metrics.total(name) == metrics.total(name, kind="router", replica="")
        lines = [line.split() for line in gateway.access_lines()]
        for way in WAYS:
            ways = Counter(fields[4] for fields in lines if fields[2] == way)
            # Past a router only while its first target after none is new to it.
            others = ways["direct"] + ways["fallback"] if way != "direct" else ways["fallback"]
            assert ways[way] > 2 * others, (way, ways)


async def changed_under_load(
    gateway: Gateway, way: str, replicas: list[Replica], session: aiohttp.ClientSession
) -> None:
    windows = Windows()
    operator = Operator(gateway, way, replicas, windows)
    await operator.add(replicas[0].name)
    await operator.add(replicas[1].name)
    pid = await gateway.router_pid(way) if WAYS[way] else 0
    load = Load(Clients(gateway.url, way, session), windows)
    async with asyncio.TaskGroup() as group:
        for _ in range(STREAMS):
            group.create_task(load.stream())
        for _ in range(POSTERS):
            group.create_task(load.post())
        await operator.make(CHANGES)
        load.stop.set()
    assert operator.changes >= CHANGES
    assert operator.zeros >= 4
    assert load.streams["whole"] >= 2 * STREAMS
    assert load.posts["answered"] >= CHANGES // 4
    if pid:
        assert await gateway.router_pid(way) == pid
        assert (await gateway.service(way))["router"]["restarts"] == 0
