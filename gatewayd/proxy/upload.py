"""The request body on its way to the replica, while it still arrives.

Owns: framing it anew, its size bound, what is kept so that it can be sent once more, when the
kernel can pass it on. Does not own: attempts (forward), parsing (aiohttp hands out the body without
its framing), how the kernel does that (net.splice).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from gatewayd.core import reply as replies
from gatewayd.core.reply import LocalReply
from gatewayd.proxy.payload import BodyRefusedError, unchanged
from gatewayd.proxy.whole_body import WholeBody

if TYPE_CHECKING:
    from gatewayd.net.splice import Splice
    from gatewayd.net.upstream import UpstreamConnection
    from gatewayd.proxy.exchange import Exchange
    from gatewayd.proxy.plane import Plane

_REPLAY_SIZE: Final = 1024 * 1024  # of a body kept so that it can be sent once more
_SPLICE_SIZE: Final = 1024 * 1024  # of what is still to come, to be worth the preparations


class RequestBody:
    """One per forward. `refused` is called when the body cannot be sent to its end.

    `kept` is what has been read of a body that was still arriving, all of it or nothing: it lets
    the body be sent to somebody else, from its start.
    """

    _whole: bytes | None = None  # as the client sent it, when all of it has arrived
    _keeping = True
    _task: asyncio.Task[None] | None = None
    _splice: Splice | None = None
    _connection: UpstreamConnection | None = None  # of the splice
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

        Raises BodyRefusedError.
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
                raise BodyRefusedError(replies.BODY_TOO_LARGE)
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
        """The next piece as the client sent it, b"" at the end. Raises BodyRefusedError."""
        exchange = self._exchange
        data = await exchange.payload.readany()
        exchange.bytes_in += len(data)
        if exchange.bytes_in > self._max_size:
            raise BodyRefusedError(replies.BODY_TOO_LARGE)
        if self._keeping:
            self.kept.append(data)
            self.kept_size += len(data)
        return data

    def send(self, connection: UpstreamConnection, *, keep: bool) -> None:
        """Relay a body that is still arriving. `keep` what is sent while that is small."""
        self._task = self._plane.spawn(self._relay(connection, keep=keep), self._exchange)

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None
        if self._splice is not None:
            self._splice.close()
            self._splice = None

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
        splices = self._can_be_spliced()
        try:
            while data := await self.read():
                if not keep or self.kept_size > _REPLAY_SIZE:
                    self.forget()
                connection.write(self.framed(data))
                if connection.writing_paused:
                    await connection.drained()
                if splices and not self._keeping:
                    splices = False
                    if await self._begin_splice(connection):
                        self._task = None
                        return
        except BodyRefusedError as refused:
            self._task = None
            self._refused(refused.reply)
            return
        if self.trailer:
            connection.write(self.trailer)
        connection.request_done = True
        self._task = None

    # --- the rest of a large body, by way of the kernel

    def _can_be_spliced(self) -> bool:
        """If there is a lot to come, and the replica gets just the bytes that the client sends."""
        exchange = self._exchange
        return (
            exchange.length - exchange.bytes_in >= _SPLICE_SIZE
            and exchange.length <= self._max_size
            and not exchange.connection.secure
            and not exchange.upgrade
            and unchanged(exchange.payload)
        )

    async def _begin_splice(self, connection: UpstreamConnection) -> bool:
        """What has been read goes first. False when the rest has to go the usual way."""
        exchange = self._exchange
        client = exchange.connection
        fed = client.hold_body()
        while exchange.bytes_in < min(fed, exchange.length):  # a next request may be behind it
            connection.write(await self.read())
        await connection.flushed()
        left = exchange.length - exchange.bytes_in
        if exchange.bytes_in == fed and left and client.transport and not connection.closed:
            self._connection = connection
            splices = self._plane.splices
            self._splice = splice = splices.open(client.transport, connection, left, self)
            if splice is not None:
                try:
                    splice.start()
                except OSError:
                    splice.close()
                    self._splice = None
                else:
                    return True
        client.resume_body()
        return False

    def splice_moved(self, size: int) -> None:
        self._exchange.bytes_in += size

    def splice_ended(self) -> None:
        assert self._connection is not None
        self._connection.request_done = True
        self._exchange.connection.body_passed(self._exchange)

    def splice_cut(self) -> None:
        """Half a body is a client gone."""
        transport = self._exchange.connection.transport
        if transport is not None:
            transport.close()

    def forget(self) -> None:
        """From here on the body goes one way only: it will not be sent again."""
        self._keeping = False
        self._whole = None
        self.kept = []
        self.kept_size = 0


Body = RequestBody | WholeBody


def _nobody(reply: LocalReply) -> None:
    """The exchange is over."""
