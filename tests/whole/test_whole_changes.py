"""Replicas come and go 200 times through the admin address under streams and steady posts, and
nothing is lost: straight to the replicas and through the real router."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from whole_gateway import Gateway
from whole_replicas import Replica
from whole_streams import Broken, Clients, Heard, Windows

CHANGES = 200
STREAMS = 20
POSTERS = 3
TOKENS = 30
SERVICE = "llama"
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
            status, answer = await self.clients.post(max_tokens=2)
            if status == 200:
                assert answer["choices"][0]["message"]["content"] == "token 0 token 1 "  # type: ignore[index]
                self.posts["answered"] += 1
            else:
                self._excuse(Broken(f"{status}: {answer}"), began)
                self.posts["no replica"] += 1
            await asyncio.sleep(0.01)

    def _excuse(self, error: Broken, began: float) -> None:
        """Without a replica a 503 is right; with one nothing is."""
        no_replica = str(error).startswith("503") and "no_ready_replica" in str(error)
        if not no_replica or not self.windows.overlap(began, time.monotonic()):
            raise error


class Operator:
    """Makes changes one after the other, and checks that the others are left alone."""

    def __init__(self, gateway: Gateway, replicas: list[Replica], windows: Windows) -> None:
        self.gateway = gateway
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
        await self.gateway.add(SERVICE, name, path)
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
            await self.gateway.remove(SERVICE, name)
        else:
            await self.gateway.drain(SERVICE, name, 0.05)  # streams that run longer go on
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
        replicas = (await self.gateway.service(SERVICE))["replicas"]
        assert {r["id"] for r in replicas} == {*self.there}
        ports = {r["id"]: r["bridge_port"] for r in replicas}
        for name, port in self.ports.items():
            assert name == but or name not in ports or ports[name] == port, (name, port, ports)
        self.ports.update({name: port for name, port in ports.items() if port is not None})
        await asyncio.sleep(self.chance.choice((0, 0, 0.05)))  # bursts of changes, and pauses


@pytest.mark.parametrize("way", ["direct", "through", "steered"])
async def test_two_hundred_changes_under_load_lose_nothing(home: Path, way: str) -> None:
    router = {"direct": None, "through": THROUGH, "steered": STEER}[way]
    replicas = [Replica(f"r{i}", home / f"r{i}.sock", gap_s=0.05) for i in range(5)]
    service = {"name": SERVICE, "model": "m", "router": router, "replicas": []}
    async with AsyncExitStack() as stack:
        for replica in replicas:
            await stack.enter_async_context(replica)
        gateway = await stack.enter_async_context(Gateway(home, [service]))
        session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        )
        windows = Windows()
        operator = Operator(gateway, replicas, windows)
        await operator.add("r0")
        await operator.add("r1")
        pid = await gateway.router_pid(SERVICE) if router else 0
        load = Load(Clients(gateway.url, SERVICE, session), windows)
        async with asyncio.timeout(90):
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
        assert load.posts["answered"] >= CHANGES // 2
        if router:
            assert await gateway.router_pid(SERVICE) == pid
            assert (await gateway.service(SERVICE))["router"]["restarts"] == 0
            ways = Counter(line.split()[4] for line in gateway.access_lines())
            # Past it only while its first target after none is new to it.
            assert ways[way] > 2 * (ways["direct"] + ways["fallback"]), ways
        metrics = await gateway.metrics()
        # A router that has no target yet is no replica's failure.
        name = "gatewayd_upstream_errors_total"
        assert metrics.total(name) == metrics.total(name, kind="router", replica="")
