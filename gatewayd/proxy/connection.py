"""Client connections: aiohttp parses, limits and terminates; requests run one after another.

Owns: the order of requests on a connection, keep-alive, the connection's part of a tunnel. Does not
own: how bytes become requests (hearing), how a connection ends (ending), what a request means
(handler).

`RequestHandler` normally runs a task per connection and one per request. Here a request is
handed on from `data_received` itself, which costs a third; the parser, its limits, its flow
control and the server's registry of connections stay aiohttp's. The seams used are tested in
tests/proxy/test_aiohttp_seams.py, and the version is pinned.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from aiohttp import web

from gatewayd.core.reply import LocalReply
from gatewayd.net.lane import Way
from gatewayd.net.sink import NOWHERE
from gatewayd.net.tls_transport import TlsTransport
from gatewayd.proxy.ending import Ending
from gatewayd.proxy.exchange import Exchange
from gatewayd.proxy.handling import Handler
from gatewayd.proxy.peers import UNIX_PEER, PeerCounts

if TYPE_CHECKING:
    from gatewayd.net.upstream import UpstreamConnection
    from gatewayd.proxy.server import EdgeServer


class ClientConnection(Ending):
    """One client. At most one exchange runs; what comes behind it waits as raw bytes."""

    __slots__ = (
        "_advancing",
        "_counted",
        "_peers",
        "_resting",
        "_tunnel",
        "_write",
        "forwarded_lines",
        "host",
        "raw_host",
    )

    def __init__(
        self,
        server: web.Server,
        handler: Handler,
        peers: PeerCounts,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(server, handler, loop)
        self._peers = peers
        self._counted = False
        self._resting = False
        self.raw_host = b""  # of the last request, with what follows from it
        self.host = ""
        self.forwarded_lines = b""
        self._advancing = False
        self._tunnel: UpstreamConnection | None = None
        self._write: Callable[[bytes], None] = NOWHERE.send

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert self._manager is not None
        # The listening sockets carry TCP_NODELAY and SO_KEEPALIVE; accepted ones inherit them.
        self.transport = cast(asyncio.Transport, transport)
        self._write = self.transport.write  # to look it up makes it anew
        self._manager.connection_made(self, self.transport)
        peer = transport.get_extra_info("peername")
        self.peer = peer[0] if isinstance(peer, tuple) else UNIX_PEER
        self._counted = self._peers.admit(self.peer, self._handler.limits.connections_per_ip)
        if not self._counted:
            self._handler.dropped("connections", None)
            self.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        manager = self._manager
        if manager is None:
            return
        if self._early:
            self._hear(self._take_early())  # it was a request, if not a whole one
        self.closing = True
        if self._counted:
            self._peers.leave(self.peer)
        manager.connection_lost(self, exc)
        self._manager = None
        self.transport = None
        self._write = NOWHERE.send
        self._parser = None
        self._held.clear()
        self._messages.clear()
        tunnel, self._tunnel = self._tunnel, None
        if tunnel is not None:
            tunnel.abort()
        exchange = self.exchange
        if exchange is not None:
            if exchange.running is not None:
                exchange.running.client_gone()
            if self.exchange is exchange:
                self.exchange_ended(exchange)

    def data_received(self, data: bytes) -> None:
        if self.closing:
            self._linger(len(data))
            return
        if self.exchange is not None:
            self._received_meanwhile(self.exchange, data)
            return
        if self._early and not (data := self._with_early(data)):
            return
        if not self._parser_empty or self._paused:
            self._hear(data)
        elif self.known is not None:
            self._early.append(data)
            self._handler.arrivals.put(self)
        else:
            exchange = self.exchange = self._recognised(data)
            if exchange is not None:
                self._handler.begin(exchange)
            elif not self._early:
                self._hear(data)

    def _received_meanwhile(self, exchange: Exchange, data: bytes) -> None:
        tunnel = self._tunnel
        if tunnel is not None:
            exchange.bytes_in += len(data)
            tunnel.write(data)
            if tunnel.writing_paused:
                self._pause_reading_for_buffer()
        elif not exchange.payload.is_eof():
            self._hear(data)
        elif data:
            # Without any it is re-entered by StreamReader.read_nowait -> resume_reading: the
            # running request is complete, so nothing may be parsed now.
            self._hold(data)

    def _hear(self, data: bytes) -> None:
        self._feed(data)
        if self.exchange is None:
            self._advance()

    def eof_received(self) -> None:
        """Returning None closes the transport: half a connection is a client gone."""

    def pause_writing(self) -> None:
        self._paused = True
        if self._resting:
            self._watch()
        self._stalled_since = self._loop.time()
        self._stalled_at = -1
        if self.exchange is not None and self.exchange.running is not None:
            self.exchange.running.client_paused()

    def resume_writing(self) -> None:
        self._paused = False
        self._stalled_since = 0.0
        if self.exchange is None:
            self._advance()
        elif self.exchange.running is not None:
            self.exchange.running.client_resumed()

    # --- requests in order

    def _advance(self) -> None:
        """Start the next request unless one runs, or the client does not take answers."""
        if self._advancing:
            return
        self._advancing = True
        try:
            while self.exchange is None and not self.closing and not self._paused:
                if self._messages:
                    message, payload = self._messages.popleft()
                    assert self._parser is not None
                    self._parser.message_consumed()
                    exchange = self.exchange = Exchange(self, message, payload)  # type: ignore[arg-type]
                    self._handler.begin(exchange)
                elif self._held:
                    data = b"".join(self._held)
                    self._held.clear()
                    self._held_size = 0
                    self._feed(data)
                    if self._buffer_paused:
                        self._resume_reading_for_buffer()
                elif self._parser_holds:
                    self._feed(b"")
                else:
                    break
        finally:
            self._advancing = False

    def exchange_ended(self, exchange: Exchange, now: float = 0.0) -> None:
        """The answer of the running exchange has been written, or cannot be."""
        self.exchange = None
        if self._resting:
            self._watch()
        exchange.running = None
        exchange.ended_at = now = now or time.monotonic()
        self._handler.ended(exchange)
        if self.transport is None:
            return
        arrived = exchange.known is not None or exchange.payload.is_eof()
        if exchange.close or not arrived or self._handler.draining:
            more = not exchange.payload.is_eof() or self._held or self._buffer_paused
            self.finish(lingering=bool(more))
            return
        self._idle_since = now  # loop time is of the same clock
        if self._held or not self._parser_empty:
            if self._parser_holds:
                self._parsed(exchange)
            self._advance()

    def _refuse(self, reply: LocalReply) -> None:
        exchange = self.exchange
        if exchange is not None:
            # The body of the running request is broken: its framing ends here.
            if exchange.running is not None:
                exchange.running.client_broke(reply)
            return
        if self.transport is not None and not self.closing:
            self.send(self._handler.malformed(self, reply))
            self.finish(lingering=True)

    # --- answers

    def send(self, data: bytes) -> None:
        """A whole answer."""
        if self.transport is not None:
            self._handler.outbox.put(self._write, data)

    def stream(self) -> Callable[[bytes], None]:
        """For an answer that comes piece by piece: each leaves at once."""
        assert self.transport is not None
        self._handler.outbox.flush()
        return self.transport.write

    def straight(self) -> Way | None:
        """For an answer that lasts. None while something is still to be sent."""
        transport = self.transport
        if transport is None or transport.get_write_buffer_size():
            return None
        if isinstance(transport, TlsTransport):
            return transport.straight()
        return transport.get_extra_info("socket").fileno(), transport.write, None

    def rest(self) -> None:
        """What runs may last, and is looked at by itself: until the client takes no more of it, or
        it ends, nobody needs to look at the connection."""
        if not self._paused and not self._resting:
            self._resting = True
            cast("EdgeServer", self._manager).watched.discard(self)

    def _watch(self) -> None:
        self._resting = False
        if self._manager is not None:
            cast("EdgeServer", self._manager).watched.add(self)

    # --- tunnels

    def start_tunnel(self, upstream: UpstreamConnection) -> None:
        """From here on bytes pass both ways unparsed (RFC 9110, 7.8)."""
        self._tunnel = upstream
        assert self._parser is not None
        self._parser.set_upgraded(True)  # whatever the protocol is, aiohttp knows but one
        early = b"".join((self._parser.feed_data(b"")[2], *self._held))
        self._held.clear()
        self._held_size = 0
        if early:
            upstream.write(early)
        if self._buffer_paused:
            self._resume_reading_for_buffer()

    def resume_tunnel(self) -> None:
        if self._buffer_paused:
            self._resume_reading_for_buffer()

    def date(self) -> bytes:
        return self._handler.http_date()

    @property
    def draining(self) -> bool:
        return self._handler.draining
