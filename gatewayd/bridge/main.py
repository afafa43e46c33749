"""The bridge's role: serve the ports of the newest snapshot.

Owns: opening and retiring ports. Does not own: a request (handler), leases (control).

A process of its own, so that killing a worker never resets the router's pooled connections.
Control keeps the listening sockets: while a bridge is replaced, connections wait, not fail.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass

from gatewayd.bridge.claims import Claims
from gatewayd.bridge.connection import RouterConnection
from gatewayd.bridge.handler import PortHandler
from gatewayd.bridge.peers import Peers
from gatewayd.core.messages import (
    Configure,
    ForHandshakes,
    Publish,
    ServiceTotals,
)
from gatewayd.core.snapshot import BridgePort, BridgeSnapshot
from gatewayd.proxy.accepting import Accepting, listen
from gatewayd.proxy.plane import Plane
from gatewayd.proxy.process import run_process
from gatewayd.proxy.server import EdgeServer


@dataclass(slots=True)
class _Port:
    handler: PortHandler
    server: EdgeServer
    listener: Accepting


class BridgeRole:
    # The routers die with control, and nobody else dials the bridge.
    serves_without_control = False

    def __init__(self) -> None:
        self._plane: Plane = None  # type: ignore[assignment]  # comes with `configure`
        self._claims: Claims = None  # type: ignore[assignment]
        self._peers: Peers = None  # type: ignore[assignment]
        self._ports: dict[int, _Port] = {}
        self._sockets: dict[int, socket.socket] = {}

    def configure(self, plane: Plane, configure: Configure, fds: list[int]) -> None:
        self._plane = plane
        self._claims = Claims(plane.loop)
        self._peers = Peers(plane.loop)

    async def publish(self, message: Publish, fds: list[int]) -> None:
        snapshot = message.snapshot
        assert isinstance(snapshot, BridgeSnapshot)
        for number, fd in zip(message.new_ports, fds, strict=True):
            if (old := self._sockets.pop(number, None)) is not None:
                old.close()
            self._sockets[number] = socket.socket(fileno=fd)
        self._peers.keep(snapshot.ports.values())
        for number in [n for n in self._ports if n not in snapshot.ports]:
            self._retire(self._ports.pop(number))
        for number, port in snapshot.ports.items():
            known = self._ports.get(number)
            if known is not None and known.handler.port.endpoint.id == port.endpoint.id:
                known.handler.apply(port)
            elif number in self._sockets:
                if known is not None:
                    self._retire(known)
                self._ports[number] = await self._open(port, self._sockets.pop(number))
        self._plane.keep_pools({p.endpoint.address for p in snapshot.ports.values()})
        self._plane.servers = [s for s in self._plane.servers if s.connections or s.open]

    async def _open(self, port: BridgePort, sock: socket.socket) -> _Port:
        handler = PortHandler(self._plane, self._claims, self._peers, port)
        server = EdgeServer(handler, self._plane, RouterConnection)
        listener = await listen(self._plane.loop, server, sock)
        self._plane.servers.append(server)
        return _Port(handler, server, listener)

    def _retire(self, port: _Port) -> None:
        """Take no new connection; what runs goes on to its end."""
        port.handler.draining = True
        port.server.open = False
        port.listener.close()
        for connection in port.server.each():
            connection.finish_idle(self._plane.loop.time())

    def secure(self, message: ForHandshakes) -> None:
        raise NotImplementedError("no client speaks to the bridge")

    def link(self, slot: int, fd: int) -> None:
        self._claims.link(slot, fd)

    def totals(self) -> dict[str, ServiceTotals]:
        return {}

    def drain(self) -> None:
        for port in self._ports.values():
            self._retire(port)

    def reopen_logs(self) -> None:
        """The bridge writes no log of its own."""

    async def aclose(self) -> None:
        for port in self._ports.values():
            port.listener.close()
        for sock in self._sockets.values():
            sock.close()
        if self._claims is not None:
            self._claims.close()


def main(channel_fd: int) -> int:
    """The process that `gatewayd bridge` is."""
    return run_process(channel_fd, BridgeRole())
