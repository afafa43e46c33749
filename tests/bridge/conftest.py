"""The bridge's role in this process: ports on the loopback in front of scripted replicas."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from claiming import Claiming
from conversation import Replica, Wire, open_tcp
from waiting import until

from gatewayd.bridge.handler import LIMITS
from gatewayd.bridge.main import BridgeRole
from gatewayd.core.messages import Configure, Publish
from gatewayd.core.model import Endpoint, Log, UnixAddress
from gatewayd.core.snapshot import BridgePort, BridgeSnapshot
from gatewayd.net.loads import LoadTable
from gatewayd.proxy.plane import Plane

TOKEN = b"x-request-id-r"


class Bridge:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        loop = asyncio.get_running_loop()
        self.faults: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _, context: self.faults.append(context))
        table = LoadTable.create(1)
        self.loads = LoadTable.attach(os.dup(table.fd), 1, 0)
        table.close()
        self.plane = Plane(loop, self.loads)
        self.role = BridgeRole()
        self.role.configure(self.plane, Configure(0, 1, 1, LIMITS, Log()), [])
        self.plane.start()
        self.ports: dict[int, BridgePort] = {}
        self.replicas: dict[str, Replica] = {}
        self.clients: list[Wire] = []
        self._version = 0
        self._indexes: dict[str, int] = {}

    async def port_of(self, name: str, **bounds: float) -> tuple[int, Replica]:
        """A new port for a new replica."""
        replica = self.replicas[name] = Replica(name, self.directory / f"{name}.sock")
        await replica.start()
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        number: int = sock.getsockname()[1]
        index = self._indexes.setdefault(name, len(self._indexes))
        self.ports[number] = BridgePort(
            port=number,
            endpoint=Endpoint(name, UnixAddress(str(replica.path)), index, name),
            service="main/chat",
            idle_timeout=bounds.get("idle", 5.0),
            first_byte_timeout=bounds.get("first_byte", 5.0),
            connect_timeout=bounds.get("connect", 5.0),
            token_header=TOKEN,
        )
        await self.publish((number,), [sock.detach()])
        return number, replica

    async def publish(self, new: tuple[int, ...] = (), fds: list[int] | None = None) -> None:
        self._version += 1
        snapshot = BridgeSnapshot(self._version, dict(self.ports))
        await self.role.publish(Publish(snapshot, new), fds or [])

    async def client(self, port: int) -> Wire:
        wire = await open_tcp(port)
        self.clients.append(wire)
        return wire

    def load(self, replica: Replica) -> int:
        return self.loads.load(self._indexes[replica.name])

    async def settle(self) -> None:
        for wire in self.clients:
            wire.writer.transport.abort()
        for replica in self.replicas.values():
            await replica.stop()
        try:
            await until(lambda: not any(s.connections for s in self.plane.servers))
            await until(lambda: not self.plane.sweeper.active)
            await until(lambda: not self.plane._tasks)
            assert not any(self.load(replica) for replica in self.replicas.values())
            assert not self.faults
        finally:
            await self.role.aclose()
            await self.plane.aclose()
            self.loads.close()


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """As production runs it."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(autouse=True)
def fast_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gatewayd.proxy.sweeper._SWEEP_S", 0.01)
    monkeypatch.setattr("gatewayd.proxy.sweeper._SLOW_S", 0.01)


@pytest.fixture
async def bridge(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Bridge]:
    bridge = Bridge(tmp_path)
    yield bridge
    await bridge.settle()
    assert not [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]


@pytest.fixture
async def claiming(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[Claiming]:
    # Long enough that a test sees what comes before it, on a busy machine too.
    monkeypatch.setattr("gatewayd.bridge.claims._BEGIN_AFTER_S", 0.25)
    claiming = Claiming(tmp_path)
    yield claiming
    await claiming.settle()
    errors = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    assert not errors
