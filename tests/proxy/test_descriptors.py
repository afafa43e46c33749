"""A worker whose descriptors are used up: what is open goes on, and it recovers by itself."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import starved_edge
from conversation import Cut, Replica, Wire, chunked, get, open_tcp, post, reply, soon

LIMIT = 60


@dataclass
class Starved:
    port: int
    pid: int
    replica: Replica
    clients: list[Wire] = field(default_factory=list)

    async def client(self) -> Wire:
        self.clients.append(await open_tcp(self.port))
        return self.clients[-1]

    async def crowd(self) -> list[Wire]:
        """More connections than it has descriptors for."""
        crowd = [await self.client() for _ in range(LIMIT * 2)]
        async with asyncio.timeout(30):
            while self.descriptors < LIMIT - 2:  # noqa: ASYNC110  (another process's)
                await asyncio.sleep(0.01)
        return crowd

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

    @property
    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))


@pytest.fixture
async def starved(tmp_path: Path) -> AsyncIterator[Starved]:
    replica = Replica("a", tmp_path / "a.sock")
    await replica.start()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(starved_edge.__file__),
        str(tmp_path),
        str(LIMIT),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        port = int(await asyncio.wait_for(process.stdout.readline(), 20))
        starved = Starved(port, process.pid, replica)
        yield starved
        for wire in starved.clients:
            wire.writer.transport.abort()
    finally:
        await replica.stop()
        process.kill()
        await process.wait()


async def answered(client: Wire) -> bool:
    """False when it was closed, as the event loop does with what it has no descriptor for."""
    try:
        return (await client.ask(get())).body == b"again"
    except (Cut, ConnectionError):
        return False


async def test_open_streams_go_on_and_accepting_resumes(starved: Starved) -> None:
    stream = await starved.client()
    await stream.send(post(b"{}"))
    wire, _ = await starved.replica.request()
    await wire.send(reply(b"", framing="chunked")[:-5])
    await stream.upto(b"\r\n\r\n")

    crowd = await starved.crowd()
    before = starved.cpu_s()
    for number in range(20):  # a second of a stream, while nothing more can be opened
        event = chunked(b"data: %d\n\n" % number)[:-5]
        await wire.send(event)
        await stream.expect(event)
        await asyncio.sleep(0.05)
    assert starved.cpu_s() - before < 0.5  # a busy loop would take all of it

    for client in crowd:
        client.close()
    released = asyncio.get_running_loop().time()
    starved.replica.answers = reply(b"again")
    while not await answered(await starved.client()):  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    assert asyncio.get_running_loop().time() - released < 1.0
    await wire.send(b"0\r\n\r\n")
    await soon(stream.expect(b"0\r\n\r\n"))


async def test_a_replica_that_cannot_be_dialled_for_want_of_descriptors_is_502(
    starved: Starved,
) -> None:
    starved.replica.answers = reply(b"fine")
    client = await starved.client()
    assert (await client.ask(get())).body == b"fine"
    crowd = await starved.crowd()
    answer = await client.ask(post(b"{}"))  # needs a connection of its own
    assert answer.status in (200, 502)
    for one in crowd:
        one.close()
    async with asyncio.timeout(30):
        while (await client.ask(post(b"{}"))).status != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
