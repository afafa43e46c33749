"""How a client connection ends: after its answers, visibly cut, or because a bound is over.

Owns: lingering close, what a client sees of each end; head, idle, write and linger bounds. Does not
own: when an exchange ends (exchange, forward), when requests follow each other (connection).
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Final

from aiohttp import web

from gatewayd.core import reply as replies
from gatewayd.core.reply import LocalReply
from gatewayd.net.in_kernel import unread, unsent
from gatewayd.proxy.handling import Handler
from gatewayd.proxy.hearing import Hearing
from gatewayd.proxy.peers import UNIX_PEER

_LINGER_S: Final = 10.0
# SO_LINGER for no time at all: it closes with RST, also when the process is killed.
_RESET: Final = struct.pack("ii", 1, 0)
_NO_RESET: Final = struct.pack("ii", 0, 0)
_LINGER_SIZE: Final = 64 * 1024 * 1024


class Ending(Hearing):
    """`closing`: no further request is read on this connection."""

    __slots__ = (
        "_idle_since",
        "_linger_until",
        "_lingered",
        "_open_ended",
        "_stalled_at",
        "_stalled_since",
        "closing",
    )

    def __init__(
        self, server: web.Server, handler: Handler, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(server, handler, loop)
        self.closing = False
        self._idle_since = self._loop.time()
        self._linger_until = 0.0
        self._lingered = 0
        self._open_ended = False
        self._stalled_at = 0
        self._stalled_since = 0.0

    def open_ended(self) -> None:
        """The end of the connection will be the end of this answer. A clean one is left to
        `finish`; until then, whatever happens, a part must not look like the whole."""
        if self.transport is not None and self.peer != UNIX_PEER and not self._open_ended:
            self._open_ended = True
            self._set_linger(_RESET)

    def _set_linger(self, linger: bytes) -> None:
        assert self.transport is not None
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    def finish(self, *, lingering: bool = False) -> None:
        """Close after what has been written. Lingering reads and drops what is still arriving,
        so that a reset does not take the answer away from a client that is still sending."""
        self.closing = True
        transport = self.transport
        if transport is None:
            return
        if self._open_ended:
            self._open_ended = False
            self._set_linger(_NO_RESET)
        self._held.clear()
        if self._early:
            self._take_early()
        self._messages.clear()
        self._linger_until = self._loop.time() + _LINGER_S
        outbox = self._handler.outbox
        if lingering and transport.can_write_eof():
            outbox.flush()
            self._reading_paused = False
            self._resume_reading_for_buffer()
            transport.write_eof()
        else:
            outbox.close(transport)

    def _linger(self, size: int) -> None:
        self._lingered += size
        if self._lingered > _LINGER_SIZE and self.transport is not None:
            self.transport.abort()

    def abort(self) -> None:
        """Cut the connection: the client must not take what it got for the whole."""
        self.closing = True
        self._open_ended = False  # it stays so
        self._handler.outbox.flush()
        if self.transport is not None:
            self.transport.abort()

    def end_exchange(self, reply: LocalReply) -> bool:
        """What runs is ended before its time; False: nothing runs."""
        if self.exchange is None or self.closing:
            return False
        self.exchange.end(reply)
        return True

    # --- bounds

    def sweep(self, now: float) -> None:
        """Once a second: whole-head, idle, write and linger bounds. `now` is loop time."""
        transport = self.transport
        if transport is None:
            return
        limits = self._handler.limits
        if self.closing:
            over = now - self._linger_until
            if over > limits.write_timeout or (over > 0 and not transport.get_write_buffer_size()):
                transport.abort()
        elif self._paused:
            self._sweep_stalled(now, limits.write_timeout)
        elif self.exchange is None and not self._early:
            if self._head_since:
                if now - self._head_since > limits.header_timeout:
                    self._refuse(replies.HEAD_TIMEOUT)
            else:
                self.finish_idle(now - limits.keepalive_timeout)

    def _sweep_stalled(self, now: float, write_timeout: float) -> None:
        assert self.transport is not None
        # The kernel holds megabytes for a slow reader: what it has sent on is progress as well.
        waiting = self.transport.get_write_buffer_size() + unsent(self.transport)
        if waiting != self._stalled_at:
            self._stalled_at = waiting
            self._stalled_since = now
        elif now - self._stalled_since > write_timeout:
            self._handler.dropped("write_timeout", self.exchange)
            self.end_exchange(replies.STALLED)
            self.abort()

    @property
    def idle(self) -> bool:
        waiting = self._head_since or self._early or self._messages
        return self.exchange is None and not waiting

    def finish_idle(self, since: float) -> None:
        """Close it if nothing has gone on since then (loop time). A request that has come, and that
        a busy loop has not read yet, is not lost."""
        if not self.idle or self.closing or self._idle_since > since or self.transport is None:
            return
        if not unread(self.transport):
            self.finish()
