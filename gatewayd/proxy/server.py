"""The server behind a listener: makes client connections and knows them.

Owns: how aiohttp is set up. Does not own: a connection (connection), listening (process).
"""

from __future__ import annotations

import asyncio

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from gatewayd.proxy.connection import ClientConnection
from gatewayd.proxy.handling import Handler
from gatewayd.proxy.peers import PeerCounts
from gatewayd.proxy.plane import Plane


class EdgeServer(web.Server):
    """aiohttp's server and its registry of connections, with connections of ours.

    `open` is False once its listener is closed. `watched` are the connections that are swept: not
    those that carry a stream which lasts, and have no deadline of their own meanwhile.
    """

    def __init__(
        self,
        handler: Handler,
        plane: Plane,
        kind: type[ClientConnection] = ClientConnection,
        peers: PeerCounts | None = None,  # shared with the server of other listeners
    ) -> None:
        super().__init__(_unused, loop=plane.loop)
        self.open = True
        self.watched: set[ClientConnection] = set()
        self._handler = handler
        self._sweeper = plane.sweeper
        self._kind = kind
        self._peers = peers or PeerCounts()

    def __call__(self) -> ClientConnection:
        return self._kind(self, self._handler, self._peers, self._loop)

    def accept(self) -> asyncio.BaseProtocol:
        """What speaks with a connection that was accepted."""
        return self()

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        if isinstance(handler, ClientConnection):
            self.watched.add(handler)
        # Now that it is known: a round that does not see it rests again.
        if self._sweeper.resting:
            self._sweeper.stir()

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        self.watched.discard(handler)

    @property
    def count(self) -> int:
        """Of all connections; to list them touches each of them."""
        return len(self._connections)

    def each(self) -> list[ClientConnection]:
        return [c for c in self._connections if isinstance(c, ClientConnection)]


async def _unused(request: web.BaseRequest) -> web.StreamResponse:
    raise NotImplementedError("requests are handed on in ClientConnection._advance")
