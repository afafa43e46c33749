"""How fast the control path is, and how little an idle gateway costs."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from waiting import until
from whole_gateway import Gateway, processes_of
from whole_replicas import Replica
from whole_watch import worker

WORKER_RSS_MB = 60
TICKS = os.sysconf("SC_CLK_TCK")


async def who(gateway: Gateway, requests: int) -> Counter[str]:
    """Who answers so many requests, each on a connection of its own."""
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def one() -> str:
            headers = {"Host": "llama.test"}
            async with session.get(f"{gateway.url}/who", headers=headers) as response:
                return await response.text()

        return Counter(await asyncio.gather(*(one() for _ in range(requests))))


async def test_a_change_is_everywhere_when_its_call_returns_within_100_ms(home: Path) -> None:
    replicas = [Replica(f"r{i}", home / f"r{i}.sock") for i in range(2)]
    service = {"name": "llama", "replicas": [{"id": "r0", "socket": str(replicas[0].path)}]}
    async with replicas[0], replicas[1], Gateway(home, [service], workers=4) as gateway:
        took = []
        here, there = 0, 1
        for _ in range(10):
            began = time.monotonic()
            await gateway.add("llama", f"r{there}", str(replicas[there].path))
            took.append(time.monotonic() - began)
            assert set(await who(gateway, 8)) <= {"r0", "r1"}
            began = time.monotonic()
            await gateway.remove("llama", f"r{here}")
            took.append(time.monotonic() - began)
            # Each worker that is asked knows of it: nobody leads to the one that is gone.
            assert set(await who(gateway, 12)) == {f"r{there}"}
            here, there = there, here
        assert statistics.median(took) < 0.1
        # The last lines are written up to 150 ms after their requests.
        await until(lambda: len({worker(line) for line in gateway.access_lines()}) == 4)


async def all_run_in_turns(gateway: Gateway) -> None:
    """Who is woken does not push aside who runs (ADR 0010)."""
    status = await gateway.status()
    pids = [*(w["pid"] for w in status["workers"]), status["bridge"]["pid"]]
    pids.append(await gateway.router_pid("llama"))
    assert {os.sched_getscheduler(pid) for pid in pids} == {os.SCHED_BATCH}
    assert os.sched_getscheduler(gateway.pid) == os.SCHED_OTHER


async def test_a_change_behind_a_router_is_answered_soon(home: Path) -> None:
    replicas = [Replica(f"r{i}", home / f"r{i}.sock") for i in range(2)]
    service = {
        "name": "llama",
        "router": "sglang",
        "replicas": [{"id": "r0", "socket": str(replicas[0].path)}],
    }
    async with replicas[0], replicas[1], Gateway(home, [service]) as gateway:
        await gateway.router_pid("llama")
        await all_run_in_turns(gateway)
        took = []
        for _ in range(5):
            began = time.monotonic()
            await gateway.add("llama", "r1", str(replicas[1].path))
            took.append(time.monotonic() - began)
            await gateway.router_pid("llama")
            began = time.monotonic()
            await gateway.remove("llama", "r1")
            took.append(time.monotonic() - began)
        assert statistics.median(took) < 0.25


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def rss_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def wakes(pid: int) -> int:
    """How often any of its threads went to sleep, to be woken later."""
    tasks = Path(f"/proc/{pid}/task").glob("*/status")
    return sum(int(t.read_text().split("\nvoluntary_ctxt_switches:")[1].split()[0]) for t in tasks)


@asynccontextmanager
async def idle(home: Path) -> AsyncIterator[list[int]]:
    """The processes of a gateway whom nobody asks for anything."""
    replica = Replica("r0", home / "r0.sock")
    services = [
        {"name": f"s{i}", "replicas": [{"id": "r0", "socket": str(replica.path)}]}
        for i in range(20)
    ]
    async with replica, Gateway(home, services) as gateway:
        # What the start itself costs; the clock's word for it depends on who else is at work.
        assert cpu_s(gateway.pid) < 1.0
        for pid in await gateway.worker_pids():
            assert rss_mb(pid) < WORKER_RSS_MB
        await gateway.close_admin()
        pids = [*processes_of(gateway.tmp)]
        assert len(pids) == 3  # control and two workers
        yield pids


async def test_an_idle_gateway_is_seldom_awake(home: Path) -> None:
    """What does not depend on the machine: here a wake-up costs 0.1 ms on one day and 5 on another,
    when the host takes back what memory has not been touched for a second."""
    async with idle(home) as pids:
        await asyncio.sleep(1)
        before = sum(map(wakes, pids))
        await asyncio.sleep(5)
        assert sum(map(wakes, pids)) - before <= 5 * 12


@pytest.mark.slow
async def test_an_idle_gateway_costs_next_to_nothing(home: Path) -> None:
    """On a calm machine; `make bench` has the same bound."""
    async with idle(home) as pids:
        before, began = sum(map(cpu_s, pids)), time.monotonic()
        await asyncio.sleep(5)
        used = sum(map(cpu_s, pids)) - before
        assert used / (time.monotonic() - began) <= 0.01 + 2 / TICKS / 5  # ticks are coarse


@pytest.mark.slow
async def test_start_to_ready_takes_a_second(home: Path) -> None:
    took = []
    for _ in range(5):
        async with Gateway(home, []) as gateway:
            took.append(gateway.started_s)
    assert statistics.median(took) < 1.0
