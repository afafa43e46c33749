"""A client that reads slowly from a fast replica stops the replica, and fills nobody's memory."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web
from fake_engine import Recorded
from waiting import until
from whole_gateway import Gateway
from whole_replicas import Replica
from whole_steering import memory_kib

SIZE = 100 << 20
PIECE = 64 << 10
GROWTH_KIB = 4 << 10
SERVICE = "llama"


@dataclass
class Flood(Replica):
    """Answers a chat with 100 MiB as fast as they are taken; `sent` counts them."""

    sent: int = 0

    async def _answer(self, request: web.Request, recorded: Recorded) -> web.StreamResponse:
        if request.path != "/v1/chat/completions":
            return await super()._answer(request, recorded)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        event = b"data: " + b"x" * (PIECE - 8) + b"\n\n"
        for _ in range(SIZE // PIECE):
            await response.write(event)
            self.sent += PIECE
        await response.write_eof()
        return response


async def test_a_slow_reader_of_a_fast_replica(home: Path) -> None:
    replica = Flood("r", home / "r.sock")
    service = {"name": SERVICE, "router": "sglang", "replicas": [f"unix:{replica.path}"]}
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(replica)
        gateway = await stack.enter_async_context(Gateway(home, [service]))
        router = await gateway.router_pid(SERVICE)
        status = await gateway.status()
        pids = {f"worker {w['slot']}": w["pid"] for w in status["workers"]}
        pids |= {"bridge": status["bridge"]["pid"], "router": router}

        def grown() -> dict[str, int]:
            return {name: memory_kib(pid) - before[name] for name, pid in pids.items()}

        async def stalled() -> bool:
            """The replica is not asked for more."""
            seen = replica.sent
            await asyncio.sleep(0.1)
            return seen == replica.sent > 0

        before: dict[str, int] = {}
        for warm in (True, False):  # what a first stream allocates once is not of the second
            before |= {name: memory_kib(pid) for name, pid in pids.items()}
            replica.sent = 0
            reader, writer = await _ask(gateway)
            assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
            if not warm:
                await until(stalled, "nothing more is taken from the replica")
                assert replica.sent < 8 << 20
                assert max(grown().values()) < GROWTH_KIB, grown()
            # Slowly at first, then as fast as it comes.
            got = 0
            for _ in range(0 if warm else 50):
                got += len(await reader.read(4096))
                await asyncio.sleep(0.002)
            async with asyncio.timeout(60):
                while data := await reader.read(1 << 20):
                    got += len(data)
            assert got > SIZE
            writer.close()
            if not warm:
                assert max(grown().values()) < GROWTH_KIB, grown()
        await until(lambda: len(gateway.access_lines()) == 2)
        for line in gateway.access_lines():
            assert line.split()[4] == "steered"


async def _ask(gateway: Gateway) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", gateway.port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=1 << 14)
    body = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"x"}]}'
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {SERVICE}.test\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    return reader, writer
