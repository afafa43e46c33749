"""Replicas for tests of the whole: the fake engine with a hand on each token, and one in a
process of its own that can be killed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import WSMsgType, web
from fake_engine import FakeEngine, Recorded
from whole_gateway import eventually


@dataclass
class Replica(FakeEngine):
    """With `stepped`, each token waits for a `step()`. `/echo` is a WebSocket; `/who` says its
    name."""

    stepped: bool = False
    _steps: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    def step(self, tokens: int = 1) -> None:
        for _ in range(tokens):
            self._steps.release()

    async def _pause(self) -> None:
        if self.stepped:
            await self._steps.acquire()
        await super()._pause()

    async def _answer(self, request: web.Request, recorded: Recorded) -> web.StreamResponse:
        if request.path == "/echo":
            return await _echo(request)
        if request.path == "/who":
            return web.Response(text=self.name)
        return await super()._answer(request, recorded)


async def _echo(request: web.Request) -> web.StreamResponse:
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        if message.type == WSMsgType.TEXT:
            await socket.send_str(message.data)
        elif message.type == WSMsgType.BINARY:
            await socket.send_bytes(message.data)
    return socket


@asynccontextmanager
async def replica_process(
    path: Path, *, gap_s: float = 0.02
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A fake engine that may be killed; whatever is left of it ends with the block."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, __file__, str(path), str(gap_s)),
        stdin=asyncio.subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    try:
        await eventually(path.exists, 10, f"{path} is bound")
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
        await process.wait()


async def _main(path: str, gap_s: str) -> None:
    async with Replica(Path(path).stem, path, gap_s=float(gap_s)):
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
