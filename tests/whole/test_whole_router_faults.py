"""Routers that are killed, hang, or do not start: the service's requests go on."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from pathlib import Path

import aiohttp
from free_ports import free_range
from processes import alive
from waiting import until
from whole_gateway import Gateway, gatewayd
from whole_replicas import Replica
from whole_routed import WAY, routed, routers_dead
from whole_streams import Clients, begin

# Said when it dies while its targets are being compared.
NOT_ASKED = "router of main/.*: (GET|POST|DELETE) /workers"


async def test_killed_routers_are_back_with_their_targets(home: Path) -> None:
    async with routed(home, "through", "steer") as both, asyncio.timeout(60):
        gateway = both[0].gateway
        gateway.allow("router of main/.* was ended by SIGKILL", NOT_ASKED)
        pids = [await whole.pid() for whole in both]
        for whole in both:
            assert await whole.ways(4) == {WAY[whole.mode]}
        streams = [await begin(whole.clients, 4, tokens=60) for whole in both]
        async with routers_dead(gateway, *pids):
            for whole in both:
                assert await whole.ways(4) == {"fallback"}  # straight to the replicas
        noticed = time.monotonic()
        # What the router carried is cut, and seen to be; what it only steered goes on.
        carried, steered = [{await one.over() for one in each} for each in streams]
        assert (carried, steered) == ({"cut"}, {"whole"})
        for whole, pid in zip(both, pids, strict=True):
            await until(lambda whole=whole, pid=pid: whole.is_another(pid), "another one serves")
        assert time.monotonic() - noticed < 20
        for whole in both:
            await until(whole.is_back, "requests go through it again")
            metrics = await gateway.metrics()
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
        await until(lambda: not any(map(alive, pids)), "found")
        assert time.monotonic() - stopped < 11
        # Who asked while it hung: a steered request gives up on it by itself; one that lay in it
        # may have reached a replica, so it is answered with an error and not repeated.
        carried, steered = await asyncio.gather(*early)
        assert carried[0] in (200, 502)
        assert steered[0] == 200
        for whole, pid in zip(both, pids, strict=True):
            assert await whole.ways(4) <= {"direct", "fallback", WAY[whole.mode]}
            assert await whole.pid() != pid
            await until(whole.is_back, "requests go through it again")


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


async def test_a_router_leaves_a_replica_that_comes_later_its_port(home: Path) -> None:
    """Else the engine cannot start, and the router's metrics are what clients get."""
    first = free_range(3).start
    engine = {"id": "later", "url": f"http://127.0.0.1:{first + 10_000}"}
    service = {"name": "llama", "router": "sglang", "replicas": [engine]}
    ports = {"bridge": "10001-11999", "router": f"{first}-{first + 2}"}
    gateway = Gateway(home, [service], ports=ports, workers=1)
    gateway.allow("does not accept connections")
    async with gateway:
        await gateway.router_pid("llama")
        with socket.create_server(("127.0.0.1", first + 10_000)):
            pass
