"""`least_requests` counts what runs on a replica over all workers."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
from waiting import until
from whole_gateway import Gateway
from whole_replicas import Replica
from whole_streams import Clients, Heard
from whole_watch import worker


async def test_held_streams_are_shared_out_evenly_over_all_workers(home: Path) -> None:
    replicas = [Replica(f"r{i}", home / f"r{i}.sock", stepped=True) for i in range(5)]
    service = {
        "name": "llama",
        "replicas": [{"id": r.name, "socket": str(r.path)} for r in replicas[:4]],
    }
    async with AsyncExitStack() as stack:
        for replica in replicas:
            await stack.enter_async_context(replica)
        gateway = await stack.enter_async_context(Gateway(home, [service]))
        session = await stack.enter_async_context(
            # A connection for each, so that both workers have their share.
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True))
        )
        clients = Clients(gateway.url, "llama", session)

        async def hold(count: int, tokens: int = 2) -> list[asyncio.Task[Heard]]:
            """One after the other: each finds the counts of all before it."""
            tasks = []
            for _ in range(count):
                running = sum(r.running for r in replicas)
                tasks.append(asyncio.create_task(clients.stream(tokens)))
                await until(
                    lambda running=running: sum(r.running for r in replicas) > running,
                    "the stream has begun",
                )
            return tasks

        streams = await hold(40)
        assert [r.running for r in replicas] == [10, 10, 10, 10, 0]
        assert await gateway.in_flight("llama") == {f"r{i}": 10 for i in range(4)}
        # A replica that comes is filled up first, whichever worker is asked.
        await gateway.add("llama", "r4", replicas[4].path)  # type: ignore[arg-type]
        streams += await hold(10)
        assert [r.running for r in replicas] == [10] * 5
        # Those that end free their places at once.
        replicas[1].step(2 * 10)
        await until(lambda: replicas[1].running == 0)
        streams += await hold(10)
        assert [r.running for r in replicas] == [10] * 5
        for replica in replicas:
            replica.step(100)
        async with asyncio.timeout(30):
            heard = await asyncio.gather(*streams)
        assert Counter(h.end for h in heard) == {"whole": 60}
        assert Counter(h.replica for h in heard) == {"r1": 20} | {f"r{i}": 10 for i in (0, 2, 3, 4)}
        await until(lambda: len(gateway.access_lines()) == 60)
        assert len({worker(line) for line in gateway.access_lines()}) == 2
        await until(lambda: _idle(gateway), "nothing is counted as running")


async def _idle(gateway: Gateway) -> bool:
    return not any((await gateway.in_flight("llama")).values())
