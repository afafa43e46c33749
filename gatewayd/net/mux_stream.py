"""One request on a connection that others share (HTTP/2).

Owns: how much of its body has left, who hears of its end. Does not own: the connection and what all
its streams together may send (net.mux).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol

from gatewayd.core import http2

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gatewayd.net.mux import Mux

_MAX_PENDING: Final = 64 * 1024  # of a body, beyond what the peer takes now


class Listener(Protocol):
    """Who is told how a request ended; one of the two, once."""

    def answered(self) -> None: ...

    def broken(self) -> None: ...


class Stream:
    """One request. `sent` once its last byte was."""

    __slots__ = (
        "_at",
        "_drained",
        "_last",
        "_mux",
        "_pending",
        "listener",
        "number",
        "sent",
        "window",
    )

    def __init__(self, mux: Mux, number: int, listener: Listener, window: int) -> None:
        self._mux = mux
        self._pending = b""
        self._at = 0  # how much of it has left
        self._last = False
        self._drained: asyncio.Future[None] | None = None
        self.listener: Listener | None = listener  # None: it is over
        self.number = number
        self.window = window
        self.sent = False

    def __repr__(self) -> str:
        state = "over" if self.listener is None else "sent" if self.sent else "sending"
        return f"<Stream {self.number} {state}>"

    @property
    def paused(self) -> bool:
        return len(self._pending) - self._at > _MAX_PENDING

    def write(self, data: bytes, *, last: bool = False) -> None:
        """Send a piece of the body, as far as the peer takes it now."""
        if self.listener is None:
            return
        self._pending = self._pending[self._at :] + data
        self._at = 0
        self._last = last
        self.flush()

    async def drained(self) -> None:
        """Returns when the stream takes bytes again, or is over."""
        if self.paused and self.listener is not None:
            self._drained = self._mux.loop.create_future()
            await self._drained

    def cancel(self) -> None:
        """Nobody waits for it any more; the peer is told."""
        if self.listener is not None:
            self._mux.take_back(self)
            self.leave()

    # --- for its connection

    def flush(self) -> None:
        parts = list(self._frames())
        if parts:
            self._mux.send(b"".join(parts), self.number)
        left = len(self._pending) - self._at
        if not left:
            self._pending = b""  # a question is held for as long as its exchange, its body is not
            self._at = 0
        self._mux.wait(self, blocked=left > 0)
        if left <= _MAX_PENDING:
            self._wake()

    def _frames(self) -> Iterator[bytes]:
        mux = self._mux
        end = len(self._pending)
        while not self.sent and (self._at < end or self._last):
            size = min(end - self._at, self.window, mux.window, mux.frame_size)
            if size <= 0 and self._at < end:
                return
            piece = self._pending[self._at : self._at + size]
            self._at += size
            self.window -= size
            mux.window -= size
            self.sent = self._last and self._at == end
            yield http2.frame(http2.DATA, http2.END_STREAM * self.sent, self.number, piece)

    def leave(self) -> Listener | None:
        """It is over; whoever is to hear of it."""
        listener, self.listener = self.listener, None
        self._pending = b""
        self._at = 0
        self._mux.forget(self)
        self._wake()
        return listener

    def break_off(self) -> None:
        listener = self.leave()
        if listener is not None:
            listener.broken()

    def _wake(self) -> None:
        waiter, self._drained = self._drained, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
