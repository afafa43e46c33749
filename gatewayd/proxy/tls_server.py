"""HTTPS: client connections that begin with a handshake.

Owns: bounds of a handshake, also of one that waits for a certificate; what is counted of a failed
one; what a client is told that speaks in the clear. Does not own: the handshake
(net.tls_transport), requests (connection, handler).
"""

from __future__ import annotations

import asyncio
from typing import cast

from aiohttp import web

from gatewayd.core import reply as replies
from gatewayd.net.tls import Contexts
from gatewayd.net.tls_transport import HandshakeFailure, TlsTransport
from gatewayd.proxy.connection import ClientConnection
from gatewayd.proxy.handling import Handler
from gatewayd.proxy.peers import PeerCounts
from gatewayd.proxy.plane import Plane
from gatewayd.proxy.server import EdgeServer


class TlsConnection(ClientConnection):
    """One client, its bytes secured below."""

    __slots__ = ("_shaking",)
    secure = True

    def __init__(
        self,
        server: web.Server,
        handler: Handler,
        peers: PeerCounts,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(server, handler, peers, loop)
        self._shaking = True

    def secured(self) -> None:
        self._shaking = False
        self._idle_since = self._loop.time()

    def insecure(self, failure: HandshakeFailure) -> bytes:
        self._shaking = False
        self.closing = True
        if failure == "plain_http":
            return self._handler.malformed(self, replies.PLAIN_HTTP)
        self._handler.dropped(f"tls_{failure}", None)
        return b""

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._shaking and not self.closing:
            self.insecure("gone")
        super().connection_lost(exc)

    def sweep(self, now: float) -> None:
        if not self._shaking:
            super().sweep(now)
        elif now - self._idle_since > self._handler.limits.header_timeout:
            transport = cast(TlsTransport, self.transport)
            if transport.held:
                transport.go_on()  # no certificate came in time: the client is told so
            else:
                self.insecure("timeout")
                self.abort()

    @property
    def idle(self) -> bool:
        return not self._shaking and super().idle


class TlsServer(EdgeServer):
    """A server behind HTTPS listeners."""

    def __init__(
        self,
        handler: Handler,
        plane: Plane,
        contexts: Contexts,
        peers: PeerCounts | None = None,
    ) -> None:
        super().__init__(handler, plane, TlsConnection, peers)
        self._contexts = contexts

    def accept(self) -> asyncio.BaseProtocol:
        return TlsTransport(self._contexts, cast(TlsConnection, self()))
