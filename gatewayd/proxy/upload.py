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
    """One per forward. `refused` is called when the body cannot be sent to its end.

    `kept` is what has been read of a body that was still arriving, all of it or nothing: it lets
    the body be sent to somebody else, from its start.
    """

    _whole: bytes | None = None  # as the client sent it, when all of it has arrived
    _keeping = True
    _task: asyncio.Task[None] | None = None
    kept_size = 0

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
        self.kept: list[bytes] = []

    def plain(self) -> bytes | None:
        """The body without its framing when all of it is here (b"" without one), else None.

        Raises BodyTooLargeError.
        """
        exchange = self._exchange
        if not exchange.length:
            return b""
        if self._whole is None:
            payload = exchange.payload
            if not payload.is_eof() or not self._keeping:
                return None
            rest = payload.read_nowait()
            exchange.bytes_in += len(rest)
            if exchange.bytes_in > self._max_size:
                raise BodyTooLargeError
            self._whole = b"".join((*self.kept, rest)) if self.kept else rest
            self.kept = []
        return self._whole

    def whole(self) -> bytes | None:
        """The same as it goes on the wire of HTTP/1.1."""
        body = self.plain()
        if body is None or self._exchange.length >= 0:
            return body
        return self.framed(body) + self.trailer

    def framed(self, data: bytes) -> bytes:
        """A piece of the body as it goes on the wire (RFC 9112, 7.1 for chunks)."""
        if self._exchange.length > 0 or not data:
            return data
        return b"%x\r\n%b\r\n" % (len(data), data)

    @property
    def trailer(self) -> bytes:
        """What ends the body on the wire."""
        return b"" if self._exchange.length > 0 else b"0\r\n\r\n"

    async def read(self) -> bytes:
        """The next piece as the client sent it, b"" at the end. Raises BodyTooLargeError."""
        exchange = self._exchange
        data = await exchange.payload.readany()
        exchange.bytes_in += len(data)
        if exchange.bytes_in > self._max_size:
            raise BodyTooLargeError
        if self._keeping:
            self.kept.append(data)
            self.kept_size += len(data)
        return data

    def send(self, connection: UpstreamConnection, *, keep: bool) -> None:
        """Relay a body that is still arriving. `keep` what is sent while that is small."""
        self._task = self._plane.spawn(self._relay(connection, keep=keep))

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def refuse(self, reply: LocalReply) -> None:
        """It cannot be taken to its end: the exchange ends, with `reply` if that can be given."""
        self._refused(reply)

    def close(self) -> None:
        """The exchange is over."""
        self.stop()
        self._refused = _nobody

    @property
    def repeatable(self) -> bool:
        """Whether the body can be sent from its start (again)."""
        return not self._exchange.length or self._keeping

    async def _relay(self, connection: UpstreamConnection, *, keep: bool) -> None:
        """At most one read is held while the replica is slow; the rest waits in the socket."""
        self._exchange.send_continue()
        for data in self.kept:
            connection.write(self.framed(data))
        if not keep:
            self.forget()
        if connection.writing_paused:
            await connection.drained()
        try:
            while data := await self.read():
                if not keep or self.kept_size > _REPLAY_SIZE:
                    self.forget()
                connection.write(self.framed(data))
                if connection.writing_paused:
                    await connection.drained()
        except BodyTooLargeError:
            self._task = None
            self._refused(replies.BODY_TOO_LARGE)
            return
        if self.trailer:
            connection.write(self.trailer)
        connection.request_done = True
        self._task = None

    def forget(self) -> None:
        """From here on the body goes one way only: it will not be sent again."""
        self._keeping = False
        self._whole = None
        self.kept = []
        self.kept_size = 0


class ArrivedBody(RequestBody):
    """A body that came in one piece with its head, and so with its length."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._whole = exchange.payload.read_nowait()
        self.kept = []
        exchange.bytes_in += exchange.length

    def plain(self) -> bytes | None:
        return self._whole

    def whole(self) -> bytes | None:
        return self._whole

    def forget(self) -> None:
        self._keeping = False
        self._whole = None

    def close(self) -> None: ...


class NoRequestBody:
    """Of the requests that have none, which are as good as sent."""

    repeatable = True
    kept: Final[tuple[bytes, ...]] = ()
    kept_size = 0

    def plain(self) -> bytes:
        return b""

    def whole(self) -> bytes:
        return b""

    def send(self, connection: UpstreamConnection, *, keep: bool) -> None:
        raise AssertionError("there is nothing to wait for")

    def forget(self) -> None: ...

    def stop(self) -> None: ...

    def close(self) -> None: ...


NO_REQUEST_BODY: Final = NoRequestBody()


def _nobody(reply: LocalReply) -> None:
    """The exchange is over."""
