"""Workers and the bridge killed under load, and control itself."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest
from processes import alive
from waiting import until
from whole_gateway import Gateway, processes_of
from whole_replicas import Replica
from whole_streams import Clients, begin

STREAMS = 12


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session:
        yield session


async def test_a_killed_worker_takes_nobody_else_with_it(
    home: Path, session: aiohttp.ClientSession
) -> None:
    replica = Replica("r0", home / "r0.sock", gap_s=0.04)
    service = {"name": "llama", "model": "m", "replicas": [f"unix:{replica.path}"]}
    async with replica, Gateway(home, [service]) as gateway:
        gateway.allow("worker 0 .* was killed by SIGKILL; replaced at once|worker 0 .*next try")
        clients = Clients(gateway.url, "llama", session)
        for _ in range(20):
            status, _ = await clients.post(max_tokens=1)
            assert status == 200
        name = "gatewayd_requests_total"
        await until(lambda: _counted(gateway, name, 20), "all were reported")
        streams = await begin(clients, STREAMS, tokens=60)
        victim, other = await gateway.worker_pids()
        shares = {w["slot"]: w["connections"] for w in (await gateway.status())["workers"]}
        refused, answered, stop = [], 0, asyncio.Event()

        async def knock() -> None:
            """New connections all the while, each with a request that must be answered."""
            nonlocal answered
            while not stop.is_set():
                try:
                    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
                except OSError as error:
                    refused.append(error)
                    continue
                try:
                    writer.write(b"GET /who HTTP/1.1\r\nHost: llama.test\r\n\r\n")
                    async with asyncio.timeout(30):
                        line = await reader.readline()
                    answered += line.startswith(b"HTTP/1.1 200")
                except ConnectionError:
                    pass  # it had been accepted by the worker that was killed
                finally:
                    writer.close()
                await asyncio.sleep(0.005)

        knocking = [asyncio.create_task(knock()) for _ in range(4)]
        os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        await until(lambda: _replaced(gateway, victim), "a successor serves")
        assert time.monotonic() - killed < 10
        ends = [await one.over() for one in streams]
        stop.set()
        await asyncio.gather(*knocking)
        assert refused == []
        assert answered > 20
        assert set(ends) == {"cut", "whole"}, (ends, shares)
        assert (await gateway.worker_pids())[1] == other
        # What the dead one had reported is not forgotten, and nothing is counted as running.
        assert (await gateway.metrics()).total("gatewayd_worker_restarts_total") == 1
        whole = ends.count("whole")
        await until(lambda: _counted(gateway, name, 20 + whole + answered), "the totals")
        await until(lambda: _idle(gateway), "nothing runs")
        await until(lambda: replica.running == 0, "the replica was told")


async def _counted(gateway: Gateway, name: str, least: float) -> bool:
    return (await gateway.metrics()).total(name, service="llama") >= least


async def _replaced(gateway: Gateway, victim: int) -> bool:
    workers = (await gateway.status())["workers"]
    return all(w["state"] == "ready" and w["pid"] not in (None, victim) for w in workers)


async def _idle(gateway: Gateway) -> bool:
    return not any((await gateway.in_flight("llama")).values())


async def test_counters_never_go_back(home: Path, session: aiohttp.ClientSession) -> None:
    replica = Replica("r0", home / "r0.sock")
    service = {"name": "llama", "replicas": [f"unix:{replica.path}"]}
    async with replica, Gateway(home, [service]) as gateway:
        gateway.allow("was killed by SIGKILL")
        clients = Clients(gateway.url, "llama", session)
        name = "gatewayd_requests_total"
        for number, victim in enumerate((0, 1, 0), 1):
            for _ in range(10):
                assert (await clients.post(max_tokens=1))[0] == 200
            await until(lambda n=number: _counted(gateway, name, 10 * n), "reported")
            seen = await gateway.metrics()
            pids = await gateway.worker_pids()
            os.kill(pids[victim], signal.SIGKILL)
            await until(lambda pid=pids[victim]: _replaced(gateway, pid))
            now = await gateway.metrics()
            assert now.total(name, service="llama") == 10 * number
            for key, value in seen.items():
                if key[0].endswith(("_total", "_count", "_bucket")):
                    assert now.get(key, -1) >= value, key
        assert (await gateway.metrics()).total("gatewayd_worker_restarts_total") == 3


async def test_a_killed_bridge_is_replaced_and_keeps_its_ports(
    home: Path, session: aiohttp.ClientSession
) -> None:
    ways = {"through": "through", "steer": "steered"}
    replicas = {
        mode: [Replica(f"{mode}{i}", home / f"{mode}{i}.sock", gap_s=0.03) for i in range(2)]
        for mode in ways
    }
    services = [
        {
            "name": mode,
            "router": {"type": "sglang", "mode": mode},
            "replicas": [{"id": r.name, "socket": str(r.path)} for r in replicas[mode]],
        }
        for mode in ways
    ]

    async def ports() -> dict[str, int]:
        return {
            replica["id"]: replica["bridge_port"]
            for mode in ways
            for replica in (await gateway.service(mode))["replicas"]
        }

    async with AsyncExitStack() as stack:
        for replica in itertools.chain(*replicas.values()):
            await stack.enter_async_context(replica)
        gateway = await stack.enter_async_context(Gateway(home, services))
        gateway.allow("bridge 2 .* was killed by SIGKILL")
        clients = {mode: Clients(gateway.url, mode, session) for mode in ways}
        routers = {mode: await gateway.router_pid(mode) for mode in ways}
        before = await ports()
        streams = {mode: await begin(clients[mode], 4, tokens=40) for mode in ways}
        bridge = (await gateway.status())["bridge"]["pid"]
        os.kill(bridge, signal.SIGKILL)
        # From the first moment on requests are answered: through the queue of the ports, or past.
        for _ in range(8):
            for asked in clients.values():
                status, answer = await asked.post(max_tokens=1)
                assert status == 200, answer
        assert {await one.over() for one in streams["through"]} == {"cut"}
        assert {await one.over() for one in streams["steer"]} == {"whole"}
        await until(lambda: _bridge_ready(gateway, bridge), "a new bridge")
        assert await ports() == before
        for mode, way in ways.items():
            assert await gateway.router_pid(mode) == routers[mode]
            for _ in range(4):
                assert (await clients[mode].post(max_tokens=1))[0] == 200
            assert {*await gateway.ways(clients[mode].ids[-4:])} == {way}


async def _bridge_ready(gateway: Gateway, old: int) -> bool:
    bridge = (await gateway.status())["bridge"]
    return bridge["state"] == "ready" and bridge["pid"] != old


async def test_workers_serve_on_without_control_and_make_room_for_the_next(
    home: Path, session: aiohttp.ClientSession
) -> None:
    replica = Replica("r0", home / "r0.sock", gap_s=0.03)
    routed = Replica("r1", home / "r1.sock", gap_s=0.03)
    services = [
        {"name": "llama", "model": "m", "replicas": [f"unix:{replica.path}"]},
        {"name": "routed", "router": "sglang", "replicas": [f"unix:{routed.path}"]},
    ]
    async with replica, routed, Gateway(home, services) as gateway:
        gateway.allow("control is gone", "of an earlier control drains")
        clients = Clients(gateway.url, "llama", session)
        routers_clients = Clients(gateway.url, "routed", session)
        await gateway.router_pid("routed")
        old = set(processes_of(gateway.tmp))
        old_workers = await gateway.worker_pids()
        streams = await begin(clients, 6, tokens=100)
        gateway.signal(signal.SIGKILL)
        assert await gateway.exited() == -signal.SIGKILL
        for asked in (clients, routers_clients):  # the router has died with control
            for _ in range(5):
                assert (await asked.post(max_tokens=1))[0] == 200

        # A new one on the same addresses and state.
        gateway.config["listen"]["http"] = f"127.0.0.1:{gateway.port}"
        port = gateway.port
        gateway.write_file()
        await gateway.close_admin()
        await gateway.spawn()
        await gateway.until_ready()
        assert gateway.port == port
        for asked in (clients, routers_clients):
            for _ in range(5):
                assert (await asked.post(max_tokens=1))[0] == 200
        assert {await one.over() for one in streams} == {"whole"}
        await until(lambda: not any(map(alive, old)), "the survivors have left")
        assert not set(old_workers) & set(await gateway.worker_pids())
        await gateway.router_pid("routed")
        for _ in range(10):  # nobody of old holds the port any more
            assert (await clients.post(max_tokens=1))[0] == 200
