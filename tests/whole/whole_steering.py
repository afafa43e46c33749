"""For tests of steering in the whole: what a client put on the wire, what the router believes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from whole_gateway import Gateway

from gatewayd.routers import http_flags

KEY = http_flags.KEY_VARIABLE


@dataclass
class Sent:
    """A request as it left the client; `body` without its framing."""

    start: str
    fields: list[tuple[str, str]]
    body: bytes


@dataclass
class Tap:
    """Sits between a client and the gateway and writes down what the client says."""

    port: int
    said: list[bytearray] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def requests(self) -> list[Sent]:
        """All of them, by connection; each had a Content-Length or no body."""
        return [sent for said in self.said for sent in _parse(bytes(said))]


def _parse(said: bytes) -> list[Sent]:
    found = []
    while said:
        head, _, said = said.partition(b"\r\n\r\n")
        start, *lines = head.decode("latin-1").split("\r\n")
        fields = [(name, value.strip()) for name, _, value in (x.partition(":") for x in lines)]
        named = {name.lower(): value for name, value in fields}
        assert "transfer-encoding" not in named
        length = int(named.get("content-length", "0"))
        assert len(said) >= length, "the client has not said everything yet"
        found.append(Sent(start, fields, said[:length]))
        said = said[length:]
    return found


@asynccontextmanager
async def tapped(gateway: Gateway) -> AsyncIterator[Tap]:
    tasks: set[asyncio.Task[None]] = set()

    async def copy(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, said: bytearray | None
    ) -> None:
        try:
            while data := await reader.read(1 << 16):
                if said is not None:
                    said += data
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        tap.said.append(said := bytearray())
        other_reader, other = await asyncio.open_connection("127.0.0.1", gateway.port)
        try:
            await asyncio.gather(copy(reader, other, said), copy(other_reader, writer, None))
        finally:
            writer.close()
            other.close()
            tasks.discard(task)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    tap = Tap(server.sockets[0].getsockname()[1])
    try:
        yield tap
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def router_loads(gateway: Gateway, service: str) -> dict[str, int]:
    """Replica id to what the service's router believes is running there."""
    shown: dict[str, Any] = await gateway.service(service)
    by_port = {r["bridge_port"]: r["id"] for r in shown["replicas"]}
    router = shown["router"]
    headers = {"Authorization": f"Bearer {_key_of(router['pid'])}"}
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://{router['endpoint']}/workers", headers=headers) as response,
    ):
        assert response.status == 200
        workers = (await response.json())["workers"]
    return {by_port[int(w["url"].rpartition(":")[2])]: w["load"] for w in workers}


def _key_of(pid: int) -> str:
    """The key that the router was started with; only its owner can read this."""
    environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    (key,) = [x.partition(b"=")[2] for x in environ if x.startswith(f"{KEY}=".encode())]
    return key.decode()


def memory_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
