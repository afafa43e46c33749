"""Requests that arrive in one turn of the loop are dealt with together at its end, a stage at a
time.

Owns: that they are, and that one that fails costs no other. Does not own: how bytes become a
request (hearing), what a stage does (handler), the writes that follow (net.outbox).

The way of a request through this code is longer than what a core keeps at hand. Where a read from
the kernel stands between two requests, each finds it cold; where dozens go through it one behind
another, only the first does (docs/adr/0023).
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gatewayd.proxy.connection import ClientConnection
    from gatewayd.proxy.exchange import Exchange
    from gatewayd.proxy.handling import Handler

_log = logging.getLogger("gatewayd.proxy")


class Arrivals:
    """Of one handler. A connection holds itself what it puts here, and deals with it itself when it
    ends before the turn does."""

    __slots__ = ("_connections", "_handler", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, handler: Handler) -> None:
        self._loop = loop
        self._handler = handler
        self._connections: list[ClientConnection] = []

    def __repr__(self) -> str:
        return f"<Arrivals [{len(self._connections)}]>"

    def put(self, connection: ClientConnection) -> None:
        connections = self._connections
        if not connections:
            self._loop.call_soon(self.run)
        connections.append(connection)

    def run(self) -> None:
        connections, self._connections = self._connections, []
        outbox = self._handler.outbox
        outbox.hold()
        try:
            self._go_through(connections)
        finally:
            outbox.release()

    def _go_through(self, connections: list[ClientConnection]) -> None:
        handler = self._handler
        exchanges: list[Exchange] = []
        for connection in connections:
            try:
                if (exchange := connection.read_arrived()) is not None:
                    exchanges.append(exchange)
            except Exception:
                _cut(connection)
        admitted: list[Exchange] = []
        for exchange in exchanges:
            try:
                if handler.admits(exchange):
                    admitted.append(exchange)
            except Exception:
                could_not_begin(exchange)
        for exchange in admitted:
            try:
                handler.serve(exchange)
            except Exception:
                could_not_begin(exchange)


def could_not_begin(exchange: Exchange) -> None:
    """Called from a transport or the loop: nobody else would say it, or answer the client."""
    _log.exception("a request could not be begun")
    try:
        exchange.failed()
    except Exception:
        _cut(exchange.connection)


def _cut(connection: ClientConnection) -> None:
    """As a transport does whose protocol fails."""
    _log.exception("%r met what it did not expect, and is cut", connection)
    if connection.transport is not None:
        connection.transport.abort()
