"""The worker's role: accept clients on the slot's sockets and serve the snapshot.

Owns: what is particular to a worker. Does not own: its life (process), requests (handler).
When control is gone a worker serves on with its last snapshot; SIGTERM drains it then.
"""

from __future__ import annotations

import socket

from gatewayd.core.messages import (
    Certificates,
    Challenges,
    Configure,
    Expected,
    ForHandshakes,
    Publish,
    ServiceTotals,
)
from gatewayd.core.packing import PackedSnapshot, Unpacker
from gatewayd.net.buckets import SharedStore
from gatewayd.net.demand import DemandTable
from gatewayd.net.tls import Contexts
from gatewayd.net.tls_groups import limit_groups
from gatewayd.proxy.accepting import HANDLES, Accepting, listen
from gatewayd.proxy.accesslog import AccessLog
from gatewayd.proxy.handler import Edge
from gatewayd.proxy.peers import PeerCounts
from gatewayd.proxy.plane import Plane
from gatewayd.proxy.process import run_process
from gatewayd.proxy.server import EdgeServer
from gatewayd.proxy.tls_server import TlsServer


class WorkerRole:
    serves_without_control = True

    def __init__(self) -> None:
        self._plane: Plane = None  # type: ignore[assignment]  # both come with `configure`
        self._edge: Edge = None  # type: ignore[assignment]
        self._unpacker = Unpacker()
        self._contexts = Contexts()
        self._sockets: list[tuple[socket.socket, bool]] = []  # and whether it is for HTTPS
        self._listeners: list[Accepting] = []

    def configure(self, plane: Plane, configure: Configure, fds: list[int]) -> None:
        self._plane = plane
        self._sockets = [
            (socket.socket(fileno=fd), listener.tls)
            for fd, listener in zip(fds[2:], configure.listeners, strict=True)
        ]
        if any(listener.tls for listener in configure.listeners):
            limit_groups()
        buckets = SharedStore.attach(fds[0], alone=configure.slots <= 2)  # one worker, the bridge
        demand = DemandTable.attach(fds[1], configure.slot)
        self._edge = Edge(plane, configure.limits, buckets, demand, AccessLog(configure.log))
        self._edge.https_port = _port(self._sockets)
        self._contexts.awaited.on_sight = plane.sight

    async def publish(self, message: Publish, fds: list[int]) -> None:
        assert isinstance(message.snapshot, PackedSnapshot)
        self._edge.apply(self._unpacker.unpack(message.snapshot))
        # The first snapshot: before it there was nothing to serve, so nobody was accepted.
        if not self._listeners and not self._edge.draining:
            edge, plane, peers = self._edge, self._plane, PeerCounts()
            await self._listen(EdgeServer(edge, plane, peers=peers), tls=False)
            await self._listen(TlsServer(edge, plane, self._contexts, peers), tls=True)

    async def _listen(self, server: EdgeServer, *, tls: bool) -> None:
        self._plane.servers.append(server)
        for sock, is_tls in self._sockets:
            if is_tls is tls:
                handles = 1 if tls else HANDLES
                self._listeners.append(
                    await listen(self._plane.loop, server, sock, handles=handles)
                )

    def secure(self, message: ForHandshakes) -> None:
        match message:
            case Certificates():
                self._contexts.replace(message.pairs, message.default)
            case Challenges():
                self._contexts.challenge(message.alpn)
                self._edge.challenge(message.http01)
            case Expected():
                self._contexts.awaited.expect(message.coming, message.paused)

    def link(self, slot: int, fd: int) -> None:
        self._plane.asker.link(fd)

    def totals(self) -> dict[str, ServiceTotals]:
        edge = self._edge
        edge.records.flush()
        nobody = edge.meters.nobody
        nobody.log_lines_dropped(edge.access_log.dropped)
        nobody.handshakes_held(self._contexts.awaited.outcomes)
        return edge.meters.take_changed()

    def drain(self) -> None:
        self._edge.draining = True
        for listener in self._listeners:
            listener.close()
        self._contexts.awaited.close()  # certificates are a successor's from now on

    def reopen_logs(self) -> None:
        if self._edge is not None:
            self._edge.access_log.reopen()

    async def aclose(self) -> None:
        if self._edge is not None:
            if self._edge.authority is not None:
                await self._edge.authority.aclose()
            await self._edge.prompts.aclose()
            self._edge.records.flush()
            self._edge.access_log.close()
            self._plane.asker.close()


def _port(sockets: list[tuple[socket.socket, bool]]) -> int:
    """The first port for HTTPS; the usual one where there is none, or only a Unix socket."""
    for sock, tls in sockets:
        if tls and sock.family != socket.AF_UNIX:
            return int(sock.getsockname()[1])
    return 443


def main(channel_fd: int) -> int:
    """The process that `gatewayd worker` is."""
    return run_process(channel_fd, WorkerRole())
