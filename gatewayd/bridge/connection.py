"""A router's connection to a port: a request that only asks is read here, the rest by aiohttp.

Owns: recognising a question, its framing, the bytes it is answered with. Does not own: what a
claim means (claims), requests that the router carries (proxy.connection, handler).

A question is our own copy of a request on its way back to us, and nobody reads its body. So its
head is only searched, which costs a fifth of parsing it and leaves nothing behind in memory.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Final, cast

from gatewayd.proxy.connection import ClientConnection
from gatewayd.proxy.hop import FAILURE_FIELD, REPLICA_FIELD

if TYPE_CHECKING:
    from aiohttp import web

    from gatewayd.bridge.claims import Claim
    from gatewayd.bridge.handler import PortHandler
    from gatewayd.proxy.handling import Handler
    from gatewayd.proxy.peers import PeerCounts

_POST: Final = b"POST "
_HEAD_END: Final = b"\r\n\r\n"
_HEAD_SIZE: Final = 64 * 1024
_LENGTH: Final = re.compile(rb"\r\n(?i:content-length):[ \t]*([0-9]{1,18})[ \t]*\r\n")
_CODING: Final = re.compile(rb"\r\n(?i:transfer-encoding):")

_ANSWER: Final = b"HTTP/1.1 %b\r\nContent-Type: text/plain\r\n%bContent-Length: %d\r\n\r\n%b"
_CLOSE: Final = b"Connection: close\r\n"
_DONE: Final = _ANSWER % (b"200 OK", b"", 4, b"done")
_DONE_LAST: Final = _ANSWER % (b"200 OK", _CLOSE, 4, b"done")
_NOBODY: Final = _ANSWER % (
    *(b"503 Service Unavailable", FAILURE_FIELD + b": unclaimed\r\n" + _CLOSE),
    *(11, b"nobody asks"),
)
_BEGUN: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
    b"%b: %b\r\n\r\n"
)
_ENDED: Final = b"0\r\n\r\n"


class RouterConnection(ClientConnection):
    """`held` is the question that is open on it; `_left` what has not come of its body."""

    __slots__ = ("_begun", "_left", "_port", "held")

    def __init__(
        self,
        server: web.Server,
        handler: Handler,
        peers: PeerCounts,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(server, handler, peers, loop)
        self._port = cast("PortHandler", handler)
        self.held: Claim | None = None
        self._left = 0
        self._begun = b""  # of a head that has not come whole

    def data_received(self, data: bytes) -> None:
        if self.held is not None:
            self._left -= len(data)
            if self._left < 0:
                self.abort()  # nothing may follow before the answer
        elif self.exchange is not None or self.closing or self._early:
            super().data_received(data)
        elif self.known is not None and not self._begun and self._carried(data):
            pass
        elif not self._is_question(data):
            super().data_received(data)

    def _carried(self, data: bytes) -> bool:
        """Whether it is what came last, again, and is dealt with, now or when its rest comes."""
        if self._paused or not self._parser_empty:
            return False
        exchange = self.exchange = self._recognised(data)
        if exchange is not None:
            self._handler.begin(exchange)
        return exchange is not None or bool(self._early)

    def _is_question(self, data: bytes) -> bool:
        """Whether it has been dealt with here."""
        if not self._begun and (self._head_since or not data):
            return False  # of a head that the parser has begun to read
        early, self._begun = self._begun, b""
        data = early + data
        if data[:5] != _POST[: len(data)]:
            return bool(early) and self._pass_on(data)
        end = data.find(_HEAD_END)
        if end < 0 and len(data) < _HEAD_SIZE:
            self._begun = data
            self._head_since = self._head_since or self._loop.time()
            return True
        head = data[: end + 2]
        token = self._port.token_in(head)
        if token is None or _CODING.search(head):
            return self._pass_on(data)
        self._head_since = 0.0
        length = _LENGTH.search(head)
        self._left = (0 if length is None else int(length[1])) - (len(data) - end - 4)
        if self._left < 0:
            self.abort()
        else:
            self._hold_for(token)
        return True

    def _pass_on(self, data: bytes) -> bool:
        """It asks nothing, or in a way that is not read here."""
        self._head_since = 0.0
        super().data_received(data)
        return True

    def _hold_for(self, token: bytes) -> None:
        if not self._port.claim(self, token) and self.transport is not None:
            self.send(_NOBODY)
            self.finish(lingering=self._left > 0)

    # --- answers

    def begin_answer(self, replica: str) -> bool:
        """Not before the request has come whole: an early answer may end a router's upload."""
        if self.transport is None or self._left:
            return False
        self.stream()(_BEGUN % (REPLICA_FIELD, replica.encode()))
        return True

    def let_go(self, *, begun: bool) -> None:
        """The exchange is over. The connection serves again, unless it cannot."""
        self.held = None
        if self.transport is None or self.closing:
            return
        last = self._left > 0 or self._handler.draining
        self.send(_ENDED if begun else _DONE_LAST if last else _DONE)
        if last:
            self.finish(lingering=self._left > 0)
        else:
            self._idle_since = self._loop.time()

    # --- as a connection

    def connection_lost(self, exc: BaseException | None) -> None:
        held, self.held = self.held, None
        if held is not None:
            held.router_gone()
        super().connection_lost(exc)

    def sweep(self, now: float) -> None:
        if self.held is None:
            super().sweep(now)

    @property
    def idle(self) -> bool:
        return self.held is None and super().idle
