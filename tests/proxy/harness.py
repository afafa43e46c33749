"""The real edge of a worker in this process, between scripted clients and scripted replicas.

Composed as proxy.worker does it: plane, edge, server, access log. `settle` is run after every
test: whatever happened, nothing may be left running, counted or logged as an error.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from dataclasses import replace
from pathlib import Path
from typing import Any

from conversation import Replica, Wire, get, open_tcp, open_unix
from waiting import until

from gatewayd.core.entrypoint import Entrypoint, ModelEntry
from gatewayd.core.messages import CertificatePair, ServiceTotals
from gatewayd.core.model import Auth, Endpoint, Limits, Log, Service, UnixAddress, Upstream
from gatewayd.core.model import Replica as Registered
from gatewayd.core.snapshot import compile_snapshot
from gatewayd.net.buckets import LocalStore
from gatewayd.net.demand import DemandTable
from gatewayd.net.loads import LoadTable
from gatewayd.net.tls import Contexts
from gatewayd.proxy.accepting import Accepting, listen
from gatewayd.proxy.accesslog import AccessLog
from gatewayd.proxy.handler import Edge
from gatewayd.proxy.plane import Plane
from gatewayd.proxy.server import EdgeServer
from gatewayd.proxy.tls_server import TlsServer


class Gateway:
    """One worker's edge. Services come with `serve`; `publish` compiles them as control does."""

    def __init__(self, directory: Path, log: Log | None = None) -> None:
        self.directory = directory
        self.loop = asyncio.get_running_loop()
        self.faults: list[dict[str, Any]] = []  # what reached the loop's exception handler
        self.loop.set_exception_handler(lambda _, context: self.faults.append(context))
        table = LoadTable.create(1)
        self.loads = LoadTable.attach(os.dup(table.fd), 1, 0)
        table.close()
        self.plane = Plane(self.loop, self.loads)
        self.demand = DemandTable.create(1)
        demand = DemandTable.attach(os.dup(self.demand.fd), 0)
        access_log = AccessLog(log or Log(access="off"))
        self.edge = Edge(self.plane, Limits(), LocalStore(), demand, access_log)
        self.contexts = Contexts()
        self.server = EdgeServer(self.edge, self.plane)
        self.plane.servers.append(self.server)
        self.services: dict[str, Service] = {}
        self.replicas: dict[str, Replica] = {}
        self.upstreams: dict[str, Upstream] = {}  # instead of what a service's replicas give
        self.entrypoints: list[Entrypoint] = []
        self.models: list[ModelEntry] = []
        self.auth: Auth | None = None
        self.trusted_proxies: tuple[str, ...] = ()
        self.reuse_s = 0.0
        self.clients: list[Wire] = []
        self.version = 0
        self._indexes: dict[str, int] = {}
        self._listeners: list[Accepting] = []

    async def start(self) -> None:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # as control does
        sock.bind(("127.0.0.1", 0))
        self.port: int = sock.getsockname()[1]
        self._listeners.append(await listen(self.loop, self.server, sock))
        self.plane.start()

    async def listen_tls(self, *pairs: CertificatePair, default: str | None = None) -> None:
        """A second port, for HTTPS."""
        self.contexts.replace(pairs, default)
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("127.0.0.1", 0))
        self.tls_port: int = sock.getsockname()[1]
        self.edge.https_port = self.tls_port
        server = TlsServer(self.edge, self.plane, self.contexts)
        self.plane.servers.append(server)
        self._listeners.append(await listen(self.loop, server, sock))

    async def tls_client(
        self, context: ssl.SSLContext, name: str = "chat.example", **more: Any
    ) -> Wire:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.tls_port, ssl=context, server_hostname=name, **more
        )
        wire = Wire(reader, writer)
        self.clients.append(wire)
        return wire

    async def listen_unix(self) -> Path:
        path = self.directory / "edge.sock"
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(path))
        self._listeners.append(await listen(self.loop, self.server, sock))
        return path

    # --- the world

    async def add_replica(self, name: str) -> Replica:
        """A scripted replica, not yet part of a service."""
        replica = self.replicas[name] = Replica(name, self.directory / f"{name}.sock")
        await replica.start()
        return replica

    async def serve(self, name: str = "chat", **policy: Any) -> Replica:
        """A service `<name>.example` with one replica, published."""
        (replica,) = await self.serve_by(1, name, **policy)
        return replica

    async def serve_by(self, count: int, name: str = "chat", **policy: Any) -> list[Replica]:
        replicas = [await self.add_replica(f"{name}-{'abcdefgh'[i]}") for i in range(count)]
        policy.setdefault("domains", (f"{name}.example",))
        self.services[name] = Service(
            "main", name, replicas=tuple(self.registered(r) for r in replicas), **policy
        )
        self.publish()
        return replicas

    @staticmethod
    def registered(replica: Replica) -> Registered:
        return Registered(replica.name, UnixAddress(str(replica.path)))

    def change(self, name: str = "chat", **policy: Any) -> None:
        self.services[name] = replace(self.services[name], **policy)
        self.publish()

    def endpoint(self, registered: Registered) -> Endpoint:
        index = self._indexes.setdefault(registered.id, len(self._indexes))
        return Endpoint(registered.id, registered.address, index, registered.id, self.reuse_s)

    def publish(self) -> None:
        self.version += 1
        upstreams = {
            s.key: self.upstreams.get(
                s.name,
                Upstream(tuple(self.endpoint(r) for r in s.replicas if not r.draining), s.balance),
            )
            for s in self.services.values()
        }
        self.edge.apply(
            compile_snapshot(
                self.version,
                self.services.values(),
                upstreams,
                auth=self.auth,
                trusted_proxies=self.trusted_proxies,
                entrypoints=self.entrypoints,
                models=self.models,
            )
        )

    def limit(self, **bounds: Any) -> None:
        """Bounds of connections that are opened from now on."""
        self.edge.limits = replace(self.edge.limits, **bounds)
        self.plane.body_idle_timeout = self.edge.limits.body_idle_timeout

    # --- clients

    async def client(
        self, port: int = 0, *, receive_buffer: int | None = None, local: str = "127.0.0.1"
    ) -> Wire:
        wire = await open_tcp(port or self.port, receive_buffer=receive_buffer, local=local)
        self.clients.append(wire)
        return wire

    async def unix_client(self, path: Path) -> Wire:
        wire = await open_unix(path)
        self.clients.append(wire)
        return wire

    # --- what was counted

    def totals(self, name: str = "chat") -> ServiceTotals:
        self.edge.records.flush()
        key = f"main/{name}" if name else ""
        return self.edge.meters.of(key).totals

    def load(self, replica: Replica | str) -> int:
        name = replica if isinstance(replica, str) else replica.name
        return self.loads.load(self._indexes[name])

    @property
    def idle_connections(self) -> int:
        return sum(len(pool._idle) for pool in self.plane._pools.values())

    async def settle_clients(self) -> None:
        """Returns when the gateway has noticed that every client left."""
        servers = self.plane.servers
        await until(
            lambda: not any(s.connections for s in servers), "client connections are closed"
        )

    # --- the end of every test

    async def settle(self) -> None:
        for wire in self.clients:
            wire.writer.transport.abort()
        for replica in self.replicas.values():
            await replica.stop()
        plane = self.plane
        try:
            await self.settle_clients()
            await until(lambda: not plane.sweeper.active, "every exchange has ended")
            await until(lambda: not plane._tasks, "every task of an exchange has ended")
            assert not plane.splices.running
            if self.edge.authority is not None:
                await self.edge.authority.aclose()
            await self.edge.prompts.aclose()
            counted = {name: self.loads.load(i) for name, i in self._indexes.items()}
            assert not any(counted.values()), f"still counted: {counted}"
            self.edge.records.flush()
            demand = self.demand.read(0)
            assert (demand.running, demand.open_ms) == (0, 0), f"still demanded: {demand}"
            assert not self.faults, f"reached the loop: {self.faults}"
        finally:
            for listener in self._listeners:
                listener.close()
            self.edge.access_log.close()
            await plane.aclose()
            self.loads.close()
            self.demand.close()
            self.edge.demand.close()


HELLO = get("/v1/models", host="chat.example")
