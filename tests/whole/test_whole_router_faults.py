"""Routers that are killed, hang, or do not start: the service's requests go on."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from whole_gateway import Gateway, alive, eventually, gatewayd, gone
from whole_replicas import Replica
from whole_streams import Clients, begin

# Said when it dies while its targets are being compared.
NOT_ASKED = "router of main/.*: (GET|POST|DELETE) /workers"
WAY = {"through": "through", "steer": "steered"}


@dataclass
class Routed:
    """A service and its router; the service is named after the mode."""

    mode: str
    gateway: Gateway
    replicas: list[Replica]
    clients: Clients

    async def pid(self) -> int:
        return await self.gateway.router_pid(self.mode)

    async def ways(self, requests: int) -> set[str]:
        """How so many requests went, all of which succeed."""
        for _ in range(requests):
            status, answer = await self.clients.post(max_tokens=1)
            assert status == 200, answer
        return {*await self.gateway.ways(self.clients.ids[-requests:])}

    async def is_back(self) -> bool:
        return await self.ways(3) == {WAY[self.mode]}


@asynccontextmanager
async def routed(home: Path, *modes: str) -> AsyncIterator[list[Routed]]:
    replicas = {
        mode: [Replica(f"{mode}{i}", home / f"{mode}{i}.sock", gap_s=0.03) for i in range(2)]
        for mode in modes
    }
    services = [
        {
            "name": mode,
            "router": {"type": "sglang", "mode": mode},
            "replicas": [{"id": r.name, "socket": str(r.path)} for r in replicas[mode]],
        }
        for mode in modes
    ]
    async with AsyncExitStack() as stack:
        for replica in itertools.chain(*replicas.values()):
            await stack.enter_async_context(replica)
        gateway = await stack.enter_async_context(Gateway(home, services))
        session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        )
        yield [
            Routed(mode, gateway, replicas[mode], Clients(gateway.url, mode, session))
            for mode in modes
        ]


async def test_killed_routers_are_back_with_their_targets(home: Path) -> None:
    async with routed(home, "through", "steer") as both:
        both[0].gateway.allow("router of main/.* was ended by SIGKILL", NOT_ASKED)
        async with asyncio.timeout(40), asyncio.TaskGroup() as group:
            for whole in both:
                group.create_task(killed_and_back(whole))


async def killed_and_back(whole: Routed) -> None:
    way = WAY[whole.mode]
    pid = await whole.pid()
    assert await whole.ways(4) == {way}
    streams = await begin(whole.clients, 4, tokens=30)
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    # Not sooner: what a dying one has just been sent cannot be known to be without effect.
    await eventually(lambda: gone(pid), 2)
    assert way not in await whole.ways(4)  # straight to the replicas
    # What the router carried is cut, and seen to be; what it only steered goes on.
    ends = {await one.over() for one in streams}
    assert ends == ({"cut"} if whole.mode == "through" else {"whole"})
    fresh = await whole.pid()
    assert time.monotonic() - killed < 7
    assert fresh != pid
    await eventually(whole.is_back, 5, "requests go through it again")
    metrics = await whole.gateway.metrics()
    assert metrics.total("gatewayd_router_up", service=whole.mode) == 1
    assert metrics.total("gatewayd_router_restarts_total", service=whole.mode) == 1
    assert {r.running for r in whole.replicas} == {0}


async def test_routers_that_hang_are_found_and_replaced(home: Path) -> None:
    async with routed(home, "through", "steer") as both:
        gateway = both[0].gateway
        gateway.allow("router of main/.* was ended by SIGKILL .no answer to 3 probes", NOT_ASKED)
        pids = [await whole.pid() for whole in both]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        stopped = time.monotonic()
        early = [asyncio.create_task(whole.clients.post(max_tokens=1)) for whole in both]
        await eventually(lambda: not any(map(alive, pids)), 12, "found")
        assert time.monotonic() - stopped < 11
        # Who asked while it hung: a steered request gives up on it by itself; one that lay in it
        # may have reached a replica, so it is answered with an error and not repeated.
        carried, steered = await asyncio.gather(*early)
        assert carried[0] in (200, 502)
        assert steered[0] == 200
        for whole, pid in zip(both, pids, strict=True):
            assert await whole.ways(4) <= {"direct", "fallback", WAY[whole.mode]}
            assert await whole.pid() != pid
            await eventually(whole.is_back, 5, "requests go through it again")


async def test_a_router_that_cannot_start_is_said_and_missed_by_nobody(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        replica = Replica("r", home / "r.sock")
        service = {"name": "llama", "router": "sglang", "replicas": [f"unix:{replica.path}"]}
        ports = {"bridge": "10001-11999", "router": f"{port}-{port}"}
        gateway = Gateway(home, [service], ports=ports, workers=1)
        gateway.allow("router of main/llama could not be started: .*no free port")
        async with replica, gateway, aiohttp.ClientSession() as session:
            clients = Clients(gateway.url, "llama", session)
            for _ in range(3):
                assert (await clients.post(max_tokens=1))[0] == 200
            router = (await gateway.service("llama"))["router"]
            assert router["endpoint"] is None
            assert "no free port" in router["last_exit"]
            assert (await gateway.metrics()).total("gatewayd_router_up", service="llama") == 0
            # One start a second at most.
            assert gateway.read_log().count("could not be started") <= 3
            code, table, _ = await gatewayd("status", "--admin", f"unix:{gateway.admin_path}")
            assert code == 0
            assert "no free port" in table
