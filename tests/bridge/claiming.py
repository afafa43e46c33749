"""The real bridge in this process, between a scripted router and scripted workers; composed as
its process does it."""

from __future__ import annotations

import asyncio
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

from conversation import Replica, Wire, open_tcp, post
from datagrams import Frames
from waiting import until

from gatewayd.bridge.main import BridgeRole
from gatewayd.core.messages import Configure, Publish
from gatewayd.core.model import Endpoint, Limits, Log, UnixAddress
from gatewayd.core.snapshot import BridgePort, BridgeSnapshot
from gatewayd.core.steering import HELLO, finish, read_claim, token
from gatewayd.net.link import Link
from gatewayd.net.loads import LoadTable
from gatewayd.proxy.plane import Plane

SLOTS = 4  # three workers and the bridge
TOKEN = b"x-ask"


class Worker(Frames):
    """A worker's end of its link."""

    async def greeted(self) -> Worker:
        assert await self.frame() == HELLO
        return self

    async def claim(self) -> tuple[bytes, str]:
        said = read_claim(await self.frame())
        assert said is not None
        return said

    async def finish(self, token: bytes) -> None:
        await self.say_soon(finish(token))

    def die(self) -> None:
        self.close()


class Claiming:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.loop = asyncio.get_running_loop()
        self.faults: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.faults.append(context))
        table = LoadTable.create(SLOTS)
        self.loads = LoadTable.attach(os.dup(table.fd), SLOTS, SLOTS - 1)
        table.close()
        self.plane = Plane(self.loop, self.loads)
        self.plane.start()
        self.role = BridgeRole()
        self.role.configure(
            self.plane, Configure(SLOTS - 1, SLOTS, 1, Limits(), Log(access="off")), []
        )
        self.claims = self.role._claims
        self.replicas: dict[str, Replica] = {}
        self.ports: dict[str, int] = {}
        self.workers: list[Worker] = []
        self.wires: list[Wire] = []
        self._entries: dict[int, BridgePort] = {}
        self._version = 0

    async def worker(self, slot: int = 0) -> Worker:
        ours, theirs = Link.pair()
        self.role.link(slot, ours.detach())
        worker = Worker(theirs)
        self.workers.append(worker)
        return await worker.greeted()

    # --- ports

    async def serve(self, *names: str) -> list[Replica]:
        """A port for a scripted replica of each name."""
        for name in names:
            replica = self.replicas[name] = Replica(name, self.directory / f"{name}.sock")
            await replica.start()
            sock = socket.socket()
            sock.bind(("127.0.0.1", 0))
            sock.listen(64)
            number = sock.getsockname()[1]
            self.ports[name] = number
            index = len(self._entries)
            self._entries[number] = BridgePort(
                port=number,
                endpoint=Endpoint(name, UnixAddress(str(replica.path)), index, name),
                service="main/chat",
                idle_timeout=5.0,
                first_byte_timeout=5.0,
                connect_timeout=5.0,
                token_header=TOKEN,
            )
            await self.publish((number,), [sock.detach()])
        return [self.replicas[name] for name in names]

    async def publish(self, new_ports: tuple[int, ...] = (), fds: list[int] | None = None) -> None:
        self._version += 1
        snapshot = BridgeSnapshot(self._version, dict(self._entries))
        await self.role.publish(Publish(snapshot, new_ports), fds or [])

    async def retire(self, name: str) -> None:
        del self._entries[self.ports[name]]
        await self.publish()

    async def change(self, name: str, **change: Any) -> None:
        number = self.ports[name]
        self._entries[number] = replace(self._entries[number], **change)
        await self.publish()

    # --- the router's side

    async def router(self, name: str) -> Wire:
        """A connection of the router to a target."""
        wire = await open_tcp(self.ports[name])
        self.wires.append(wire)
        return wire

    def load(self, name: str) -> int:
        return self.loads.load(self._entries[self.ports[name]].endpoint.index)

    @property
    def open(self) -> int:
        return len(self.claims._open)

    async def settle(self) -> None:
        for wire in self.wires:
            wire.writer.transport.abort()
        for replica in self.replicas.values():
            await replica.stop()
        plane = self.plane
        try:
            await until(lambda: not self.open, "no claim is open")
            await until(lambda: not plane.sweeper.active, "every exchange has ended")
            await until(lambda: not plane._tasks, "every task of an exchange has ended")
            loads = [self.loads.load(index) for index in range(len(self.ports))]
            assert not any(loads), loads
            assert not self.faults, f"reached the loop: {self.faults}"
        finally:
            for worker in self.workers:
                worker.die()
            await self.role.aclose()
            await plane.aclose()
            self.loads.close()


PATH = "/v1/chat/completions"
FIELDS = ("X-Request-Id: abc", "Authorization: Bearer of-the-router")


def asks(value: bytes, body: bytes = b'{"n": 1}', *fields: str) -> bytes:
    """What a router sends on that only decides."""
    return post(body, PATH, *FIELDS, f"X-Ask: {value.decode()}", *fields, host="127.0.0.1:10001")


def tokens(slot: int = 0) -> list[bytes]:
    return [token(slot, 1, number) for number in range(1, 200)]
