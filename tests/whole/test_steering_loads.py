"""What the real router believes is running is what runs, however a steered exchange ends."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from waiting import until
from whole_gateway import Gateway
from whole_replicas import Replica, replica_process
from whole_steering import router_loads
from whole_streams import Clients, Heard, reaches

pytestmark = pytest.mark.asyncio(loop_scope="module")

SERVICE = "llama"
REPLICAS = 4
STREAMS = 40


@dataclass
class Whole:
    gateway: Gateway
    replicas: dict[str, Replica]
    clients: Clients

    async def hold(self, count: int) -> list[tuple[asyncio.Task[Heard], Heard]]:
        """Streams whose first token has come; the next waits for a step."""
        held = []
        self.hush()
        for number in range(count):
            heard = Heard()
            prompt = f"{number} " * 50
            held.append((asyncio.create_task(self.clients.stream(3, heard, prompt)), heard))
        await until(lambda: self.running.total() == count, "all have begun")
        for name, running in self.running.items():
            self.replicas[name].step(running)
        for _, heard in held:
            await reaches(heard, 1)
        return held

    def hush(self) -> None:
        """From here on no token is said without a step, and no old step counts."""
        for replica in self.replicas.values():
            replica.stepped = True
            replica._steps = asyncio.Semaphore(0)

    @property
    def running(self) -> Counter[str]:
        return +Counter({name: replica.running for name, replica in self.replicas.items()})

    async def agree(self, holds: Callable[[dict[str, int]], bool], what: str) -> None:
        """Replicas, gateway and router tell the same, and it is what the test expects."""

        async def look() -> bool:
            running = {name: replica.running for name, replica in self.replicas.items()}
            ours = await self.gateway.in_flight(SERVICE)
            theirs = await router_loads(self.gateway, SERVICE)
            seen[:] = [running, ours, theirs]
            return running == ours == theirs and holds(running)

        seen: list[dict[str, int]] = []
        try:
            await until(look)
        except AssertionError:
            raise AssertionError(f"{what}: replicas, gateway, router say {seen}") from None

    async def settle(self) -> None:
        for replica in self.replicas.values():
            replica.stepped = False
            replica.step(1000)
        await self.agree(lambda running: not any(running.values()), "nothing runs")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def whole(shared_home: Path) -> AsyncIterator[Whole]:
    replicas = {f"r{i}": Replica(f"r{i}", shared_home / f"r{i}.sock") for i in range(REPLICAS)}
    service = {
        "name": SERVICE,
        "router": {"type": "sglang", "policy": "cache_aware"},
        "replicas": [{"id": name, "socket": str(r.path)} for name, r in replicas.items()],
    }
    for replica in replicas.values():
        await replica.start()
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True))
    try:
        async with Gateway(shared_home, [service]) as gateway, session:
            gateway.allow("was killed by SIGKILL")
            await gateway.router_pid(SERVICE)
            yield Whole(gateway, replicas, Clients(gateway.url, SERVICE, session))
    finally:
        for replica in replicas.values():
            await replica.stop()


async def test_streams_that_end_whole(whole: Whole) -> None:
    held = await whole.hold(STREAMS)
    await whole.agree(lambda running: sum(running.values()) == STREAMS, "all are held")
    assert max(whole.running.values()) - min(whole.running.values()) <= 2  # least loaded first
    # Half of them end.
    for name in ("r0", "r1"):
        whole.replicas[name].step(2 * whole.running[name])
    left = whole.running["r2"] + whole.running["r3"]
    await whole.agree(lambda running: sum(running.values()) == left, "half have ended")
    for name in ("r2", "r3"):
        whole.replicas[name].step(2 * whole.running[name])
    assert [heard.end for heard in await asyncio.gather(*(task for task, _ in held))] == [
        "whole"
    ] * STREAMS
    await whole.settle()
    await until(lambda: len(whole.gateway.access_lines()) == STREAMS)
    assert {line.split()[4] for line in whole.gateway.access_lines()} == {"steered"}


async def test_clients_that_leave(whole: Whole) -> None:
    held = await whole.hold(STREAMS)
    await whole.agree(lambda running: sum(running.values()) == STREAMS, "all are held")
    for task, _ in held[: STREAMS // 2]:
        task.cancel()
    await whole.agree(lambda running: sum(running.values()) == STREAMS // 2, "half have left")
    for task, _ in held[STREAMS // 2 :]:
        task.cancel()
    await asyncio.gather(*(task for task, _ in held), return_exceptions=True)
    await whole.settle()


async def test_a_prefill_is_given_up_as_soon_as_its_client_leaves(whole: Whole) -> None:
    """Its head has been sent already: through a router it would run to its first token."""
    delays = []
    whole.hush()
    for _ in range(7):
        before = {name: len(r.inferences) for name, r in whole.replicas.items()}
        response = await whole.clients.session.post(
            f"{whole.gateway.url}/v1/chat/completions",
            json={"model": "m", "stream": True, "messages": [{"role": "user", "content": "x"}]},
            headers={"Host": f"{SERVICE}.test"},
        )
        assert response.status == 200
        (name,) = [n for n, r in whole.replicas.items() if len(r.inferences) > before[n]]
        recorded = whole.replicas[name].inferences[-1]
        assert recorded.outcome == "running"
        left = time.monotonic()
        response.close()
        await until(lambda: recorded.outcome == "client gone", "told")  # noqa: B023
        delays.append(time.monotonic() - left)
        assert recorded.tokens == 0
    assert statistics.median(delays) < 0.1, delays
    await whole.settle()


async def test_requests_that_do_not_stream(whole: Whole) -> None:
    whole.hush()
    tasks = [
        asyncio.create_task(whole.clients.post(prompt=f"{n} " * 50, max_tokens=1))
        for n in range(12)
    ]
    await whole.agree(lambda running: sum(running.values()) == 12, "all are held")
    for replica in whole.replicas.values():
        replica.step(12)
    assert {status for status, _ in await asyncio.gather(*tasks)} == {200}
    await whole.settle()


async def test_answers_that_break_off(whole: Whole) -> None:
    """A replica of its own, because it is killed."""
    mortal = Replica("mortal", whole.gateway.home / "mortal.sock")
    async with replica_process(mortal, gap_s=0.05) as process:
        await whole.gateway.add(SERVICE, "mortal", mortal.path)  # type: ignore[arg-type]
        await whole.gateway.router_pid(SERVICE)
        whole.hush()
        heard = [Heard() for _ in range(20)]
        tasks = [
            asyncio.create_task(whole.clients.stream(400, one, f"mortal {n} " * 50))
            for n, one in enumerate(heard)
        ]
        await until(lambda: any(one.tokens > 2 for one in heard), "it streams")
        os.kill(process.pid, signal.SIGKILL)
        await until(lambda: any(one.end == "cut" for one in heard), "it is seen")
        await whole.gateway.remove(SERVICE, "mortal")
        for replica in whole.replicas.values():
            replica.stepped = False
            replica.step(1000)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await whole.settle()


async def test_a_drained_replica_ends_its_streams_whole(whole: Whole) -> None:
    held = await whole.hold(12)
    busy = next(iter(whole.running))
    there = whole.running[busy]
    draining = asyncio.create_task(whole.gateway.drain(SERVICE, busy, 10))

    async def is_draining() -> bool:
        return (await whole.gateway.replica_states(SERVICE)).get(busy) == "draining"

    await until(is_draining)
    late = asyncio.create_task(whole.clients.stream(3))
    await until(lambda: whole.running.total() == 13, "another one has begun")
    assert whole.running[busy] == there
    assert not draining.done()
    for replica in whole.replicas.values():
        replica.step(3 * 13)
    ends = [(await task).end for task in (*(task for task, _ in held), late)]
    assert ends == ["whole"] * 13
    await draining
    await whole.gateway.add(SERVICE, busy, whole.replicas[busy].path)  # type: ignore[arg-type]
    await whole.gateway.router_pid(SERVICE)
    await whole.settle()


async def test_a_killed_worker_frees_what_it_had_asked_for(whole: Whole) -> None:
    held = await whole.hold(STREAMS)
    await whole.agree(lambda running: sum(running.values()) == STREAMS, "all are held")
    pids = await whole.gateway.worker_pids()
    os.kill(pids[0], signal.SIGKILL)

    def cut() -> int:
        return sum(heard.end == "cut" for _, heard in held)

    # Clients do not all hear of it in the same turn of the loop.
    await whole.agree(
        lambda running: 0 < cut() == STREAMS - sum(running.values()), "the others run"
    )
    lost = cut()
    assert lost < STREAMS
    for replica in whole.replicas.values():
        replica.step(3 * STREAMS)
    ends = Counter([(await task).end for task, _ in held])
    assert ends == {"cut": lost, "whole": STREAMS - lost}
    await whole.settle()
    # Its successor is heard by the bridge.
    await until(lambda: _replaced(whole, pids))
    before = len(whole.gateway.access_lines())
    statuses = await asyncio.gather(*(whole.clients.post() for _ in range(30)))
    assert {status for status, _ in statuses} == {200}
    await until(lambda: len(whole.gateway.access_lines()) == before + 30)
    lines = whole.gateway.access_lines()[before:]
    assert {line.split()[4] for line in lines} == {"steered"}
    assert len({line.split()[-1][:16] for line in lines}) == 2  # by both workers
    await whole.settle()


async def _replaced(whole: Whole, old: list[int]) -> bool:
    status = await whole.gateway.status()
    workers = status["workers"]
    return all(w["state"] == "ready" for w in workers) and [w["pid"] for w in workers] != old
