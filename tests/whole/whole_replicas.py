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
from typing import Literal

from aiohttp import WSMsgType, web
from fake_engine import FakeEngine, Recorded
from waiting import until

from gatewayd.net.listeners import answers


@dataclass
class Replica(FakeEngine):
    """With `stepped`, each token waits for a `step()`. `/echo` is a WebSocket; `/who` says its
    name. `manner` of POSTs: "mute" never answers, "breaks" cuts the connection instead."""

    stepped: bool = False
    manner: Literal["", "mute", "breaks"] = ""
    _steps: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    def step(self, tokens: int = 1) -> None:
        for _ in range(tokens):
            self._steps.release()

    async def vanish(self, *, leaving: str | None = None) -> None:
        """Its socket goes; `leaving` is the text of a plain file in its place."""
        await self.stop()
        self.clear(leaving)

    async def come_back(self) -> None:
        self.clear()
        await self.start()

    def clear(self, leaving: str | None = None) -> None:
        path = Path(str(self.path))
        path.unlink(missing_ok=True)
        if leaving is not None:
            path.write_text(leaving)

    async def _pause(self) -> None:
        if self.stepped:
            await self._steps.acquire()
        await super()._pause()

    async def _answer(self, request: web.Request, recorded: Recorded) -> web.StreamResponse:
        if request.method == "POST" and self.manner:
            if self.manner == "breaks" and request.transport is not None:
                request.transport.abort()
            await asyncio.get_running_loop().create_future()  # until it is cancelled
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
    like: Replica, *, gap_s: float = 0.02
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A replica of that name and path which may be killed; what is left ends with the block."""
    path = Path(str(like.path))
    like.clear()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, __file__, like.name, str(path), str(gap_s)),
        stdin=asyncio.subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    try:
        await until(lambda: answers(str(path)), f"{path} is listened on")
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
        await process.wait()


async def _main(name: str, path: str, gap_s: str) -> None:
    async with Replica(name, path, gap_s=float(gap_s)):
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
