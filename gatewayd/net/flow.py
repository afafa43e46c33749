"""Back-pressure of one connection, both ways.

Owns: pausing, and waiting until bytes are taken again. Does not own: what is read and written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from gatewayd.net.in_kernel import unsent


class Flow(asyncio.Protocol):
    """`writing_paused`: the peer is slow. `reading_paused`: we are."""

    __slots__ = (
        "_drained",
        "_resume",
        "closed",
        "reading_paused",
        "transport",
        "write",
        "writing_paused",
    )

    def __init__(self) -> None:
        self.transport: asyncio.Transport = None  # type: ignore[assignment]
        self.write: Callable[[bytes], None] = nothing_to_write_to
        self.closed = False
        self.writing_paused = False
        self.reading_paused = False
        self._resume: Callable[[], None] = nothing
        self._drained: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports implement asyncio.Transport without inheriting from it.
        self.transport = cast(asyncio.Transport, transport)
        self.write = self.transport.write  # to look it up makes it anew

    async def drained(self) -> None:
        """Returns when the connection takes bytes again, or is gone."""
        if self.writing_paused and not self.closed:
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained

    async def flushed(self) -> None:
        """Returns when all that was written lies in the kernel, or the connection is gone."""
        self.transport.set_write_buffer_limits(0)
        try:
            await self.drained()
        finally:
            self.transport.set_write_buffer_limits()

    @property
    def untaken(self) -> int:
        """Bytes that were written and that the peer has not taken, in the kernel too."""
        transport = self.transport
        if transport.is_closing():
            return 0
        return transport.get_write_buffer_size() + unsent(transport)

    def pause_reading(self) -> None:
        if not self.reading_paused and not self.closed:
            self.reading_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self.reading_paused and not self.closed:
            self.reading_paused = False
            self.transport.resume_reading()

    def pause_writing(self) -> None:
        self.writing_paused = True

    def resume_writing(self) -> None:
        self.writing_paused = False
        self._wake()
        self._resume()

    def _wake(self) -> None:
        waiter, self._drained = self._drained, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


def nothing_to_write_to(data: bytes) -> None:
    raise ConnectionError("not connected")


def nothing() -> None:
    """Nobody waits to write."""
