"""A gateway whose services have a router each, one by mode, with two replicas behind it.

async with routed(home, "steer", type="smg") as (whole,):
    ... await whole.ways(4) == {"steered"} ...
"""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from processes import ended
from waiting import until
from whole_gateway import Gateway
from whole_replicas import Replica
from whole_streams import Clients

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

    async def is_another(self, than: int) -> bool:
        """Whether another one serves by now; that the first has died is noticed a moment later."""
        return await self.pid() != than

    async def ways(self, requests: int) -> set[str]:
        """How so many requests went, all of which succeed."""
        for _ in range(requests):
            status, answer = await self.clients.post(max_tokens=1)
            assert status == 200, answer
        return {*await self.gateway.ways(self.clients.ids[-requests:])}

    async def is_back(self) -> bool:
        return await self.ways(3) == {WAY[self.mode]}


@asynccontextmanager
async def routers_dead(gateway: Gateway, *pids: int) -> AsyncIterator[None]:
    """They are killed, and no other ones started before the block has ended."""
    os.kill(gateway.pid, signal.SIGSTOP)  # who would start them
    try:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        # Not sooner: what a dying one has just been sent cannot be known to be without effect.
        await until(lambda: all(map(ended, pids)), "the routers are dead")
        yield
    finally:
        os.kill(gateway.pid, signal.SIGCONT)


@asynccontextmanager
async def routed(home: Path, *modes: str, **router: str) -> AsyncIterator[list[Routed]]:
    # Some routers know the models of their targets; "m" is what the clients ask for.
    replicas = {
        mode: [
            Replica(f"{mode}{i}", home / f"{mode}{i}.sock", model="m", gap_s=0.03) for i in range(2)
        ]
        for mode in modes
    }
    services = [
        {
            "name": mode,
            "router": {"type": "sglang", "mode": mode, **router},
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
