"""Routers that are killed, hang, or do not start: the service's requests go on."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from whole_gateway import Gateway, alive, eventually, gatewayd
from whole_replicas import Replica
from whole_streams import Clients, begin

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

    async def router_up(self) -> float:
        return (await self.gateway.metrics()).total("gatewayd_router_up", service="llama")


@asynccontextmanager
async def routed(home: Path, mode: str, **more: object) -> AsyncIterator[Routed]:
    replicas = [Replica(f"r{i}", home / f"r{i}.sock", gap_s=0.03) for i in range(2)]
    service = {
        "name": "llama",
        "router": {"type": "sglang", "mode": mode},
        "replicas": [{"id": r.name, "socket": str(r.path)} for r in replicas],
        **more,
    }
    async with AsyncExitStack() as stack:
        for replica in replicas:
            await stack.enter_async_context(replica)
        gateway = await stack.enter_async_context(Gateway(home, [service]))
        session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        )
        yield Routed(gateway, replicas, Clients(gateway.url, "llama", session))


@BOTH_MODES
async def test_a_killed_router_is_back_with_its_targets(home: Path, mode: str) -> None:
    async with routed(home, mode) as whole:
        gateway = whole.gateway
        gateway.allow("router of main/llama was ended by SIGKILL")
        pid = await gateway.router_pid("llama")
        assert await whole.ways(4) == {WAY[mode]}
        streams = await begin(whole.clients, 4, tokens=30)
        os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        # Not sooner: what a dying one has just been sent cannot be known to be without effect.
        await eventually(lambda: not alive(pid), 2)
        assert WAY[mode] not in await whole.ways(6)  # straight to the replicas
        # What the router carried is cut, and seen to be; what it only steered goes on.
        ends = {await one.over() for one in streams}
        assert ends == ({"cut"} if mode == "through" else {"whole"})
        fresh = await gateway.router_pid("llama")
        assert time.monotonic() - killed < 7
        assert fresh != pid
        assert not alive(pid)
        await eventually(lambda: _back(whole, mode), 5, "requests go through it again")
        assert await whole.router_up() == 1
        assert (await gateway.metrics()).total("gatewayd_router_restarts_total") == 1
        assert {r.running for r in whole.replicas} == {0}


async def _back(whole: Routed, mode: str) -> bool:
    return await whole.ways(3) == {WAY[mode]}


@BOTH_MODES
async def test_a_router_that_hangs_is_found_and_replaced(home: Path, mode: str) -> None:
    async with routed(home, mode) as whole:
        gateway = whole.gateway
        gateway.allow("router of main/llama was ended by SIGKILL .no answer to 3 probes")
        pid = await gateway.router_pid("llama")
        os.kill(pid, signal.SIGSTOP)
        stopped = time.monotonic()
        early = asyncio.create_task(whole.clients.post(max_tokens=1))
        found = await eventually(lambda: _gone(whole, pid), 12, "found")
        assert found
        assert time.monotonic() - stopped < 11
        assert await whole.ways(4) <= {"direct", "fallback", WAY[mode]}
        # Who asked while it hung: steered requests gave up on it by themselves; a request that
        # lay in it may have reached a replica, so it is answered with an error, not repeated.
        status, answer = await early
        assert status == 200 if mode == "steer" else status in (200, 502), answer
        assert await gateway.router_pid("llama") != pid
        await eventually(lambda: _back(whole, mode), 5, "requests go through it again")


async def _gone(whole: Routed, pid: int) -> bool:
    return not alive(pid)


async def test_a_router_that_cannot_start_is_said_and_missed_by_nobody(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        replica = Replica("r", home / "r.sock")
        service = {"name": "llama", "router": "sglang", "replicas": [f"unix:{replica.path}"]}
        ports = {"bridge": "10001-11999", "router": f"{port}-{port}"}
        gateway = Gateway(home, [service], ports=ports)
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
