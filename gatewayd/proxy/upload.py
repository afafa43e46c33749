"""The request body on its way to the replica, whole or while it still arrives.

Owns: framing it anew, its size bound, what is kept so that it can be sent once more.
Does not own: attempts (forward), parsing (aiohttp hands out the body without its framing).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from gatewayd.core import reply as replies
from gatewayd.core.reply import LocalReply

if TYPE_CHECKING:
    from gatewayd.net.upstream import UpstreamConnection
    from gatewayd.proxy.exchange import Exchange
    from gatewayd.proxy.plane import Plane

_REPLAY_SIZE: Final = 1024 * 1024  # of a body kept so that it can be sent once more


class BodyTooLargeError(Exception):
    """A body without Content-Length turned out to be larger than the service accepts."""


class RequestBody:
    """One per forward. `refused` is called when the body cannot be sent to its end."""

    __slots__ = ("_exchange", "_max_size", "_plane", "_refused", "_replay", "_task", "_whole")

    def __init__(
        self,
        plane: Plane,
        exchange: Exchange,
        max_size: int,
        refused: Callable[[LocalReply], None],
    ) -> None:
        self._plane = plane
        self._exchange = exchange
        self._max_size = max_size
        self._refused = refused
        self._whole: bytes | None = None  # as the client sent it, when all of it has arrived
        self._replay: list[bytes] | None = None  # what was read of it, while it is small enough
        self._task: asyncio.Task[None] | None = None

    def whole(self) -> bytes | None:
        """The body as it goes on the wire when all of it is here (b"" without one), else None.

        Raises BodyTooLargeError.
        """
        exchange = self._exchange
        if not exchange.length:
            return b""
        if self._whole is None:
            payload = exchange.payload
            if not payload.is_eof():
                return None
            rest = payload.read_nowait()
            exchange.bytes_in += len(rest)
            if exchange.bytes_in > self._max_size:
                raise BodyTooLargeError
            self._whole = b"".join((*(self._replay or ()), rest))
            self._replay = None
        if exchange.length > 0:
            return self._whole
        if not self._whole:
            return b"0\r\n\r\n"
        return b"%x\r\n%b\r\n0\r\n\r\n" % (len(self._whole), self._whole)

    def send(self, connection: UpstreamConnection, *, keep: bool) -> None:
        """Relay a body that is still arriving. `keep` what is sent while that is small."""
        if keep and not self._exchange.bytes_in:
            self._replay = []
        self._task = self._plane.spawn(self._relay(connection))

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None

    @property
    def repeatable(self) -> bool:
        """Whether the whole body is here to be sent (again)."""
        exchange = self._exchange
        if not exchange.length or self._whole is not None or not exchange.bytes_in:
            return True
        return self._replay is not None and exchange.payload.is_eof()

    async def _relay(self, connection: UpstreamConnection) -> None:
        """At most one read is held while the replica is slow; the rest waits in the socket."""
        exchange = self._exchange
        payload = exchange.payload
        chunked = exchange.length < 0
        exchange.send_continue()
        while data := await payload.readany():
            exchange.bytes_in += len(data)
            if exchange.bytes_in > self._max_size:
                self._task = None
                self._refused(replies.BODY_TOO_LARGE)
                return
            self._keep(data)
            connection.write(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)
            if connection.writing_paused:
                await connection.drained()
        if chunked:
            connection.write(b"0\r\n\r\n")
        connection.request_done = True
        self._task = None

    def _keep(self, data: bytes) -> None:
        if self._replay is not None:
            if self._exchange.bytes_in > _REPLAY_SIZE:
                self._replay = None
            else:
                self._replay.append(data)
