"""Idle connections to one address, and making new ones.

Owns: reuse, connect errors. Does not own: an exchange on a connection (net.upstream), which
address (proxy), when idle ones are too old (the owner sweeps).
"""

from __future__ import annotations

import asyncio
import errno
from typing import Final

from gatewayd.core.headers import ResponseHead, read_response
from gatewayd.core.model import Address, TcpAddress, UnixAddress
from gatewayd.core.retry import Failure
from gatewayd.net.outbox import Outbox
from gatewayd.net.upstream import UpstreamConnection

# Well below uvicorn's keep-alive of 5 s, the shortest in the field: an idle connection that the
# replica is about to close must not be chosen.
POOL_IDLE_S: Final = 2.0
_BODYLESS: Final = frozenset((*range(100, 200), 204, 304))
_MAX_IDLE: Final = 512  # connections kept per address
_BUSY_RETRY_S: Final = 0.005  # first pause when a replica's backlog is full; doubles up to 0.1


class ConnectFailedError(Exception):
    """No connection to an endpoint; `failure` is CONNECT or TIMEOUT_CONNECT."""

    def __init__(self, failure: Failure, detail: str) -> None:
        super().__init__(detail)
        self.failure = failure


class Pool:
    """Idle connections to one address, last in first out, so that the surplus can grow old."""

    __slots__ = (
        "_closed",
        "_head",
        "_head_read",
        "_head_strip",
        "_idle",
        "address",
        "idle_s",
        "local",
        "loop",
        "outbox",
    )

    def __init__(
        self,
        address: Address,
        loop: asyncio.AbstractEventLoop,
        outbox: Outbox | None = None,
        *,
        idle_s: float,
    ) -> None:
        self.address = address
        self.idle_s = idle_s  # what has been idle for longer is closed by the owner's sweep
        self.loop = loop
        self.local = isinstance(address, UnixAddress)
        self.outbox = outbox or Outbox(loop)
        self._idle: list[UpstreamConnection] = []
        self._head = b""  # the last one of an answer, how it was read, and what that gave
        self._head_strip: frozenset[bytes] = frozenset()
        self._head_read: ResponseHead | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<Pool {self.address} [{len(self._idle)} idle]>"

    def read_head(self, data: bytes, strip: frozenset[bytes], *, reuse: bool) -> ResponseHead:
        """`read_response`, but that a head that comes again within its second (there is a Date in
        most) is not read again. Without `reuse` the caller may change it. Raises BadResponse."""
        read = self._head_read
        if reuse and read is not None and data == self._head and strip is self._head_strip:
            return read
        read = read_response(data, strip)
        if reuse and (read.length >= 0 or read.chunked) and read.status not in _BODYLESS:
            self._head, self._head_strip, self._head_read = data, strip, read
        return read

    def take(self, newer_than: float = 0.0) -> UpstreamConnection | None:
        """An idle connection put back after `newer_than` (loop time), or None."""
        idle = self._idle
        while idle and idle[-1].idle_since >= newer_than:
            connection = idle.pop()
            if not connection.transport.is_closing():  # it has read the end, and is about to say so
                connection.reused = True
                return connection
        return None

    def put(self, connection: UpstreamConnection) -> None:
        if self._closed or len(self._idle) >= _MAX_IDLE:
            connection.abort()
            return
        connection.idle_since = self.loop.time()
        self._idle.append(connection)

    def forget(self, connection: UpstreamConnection) -> None:
        try:
            self._idle.remove(connection)
        except ValueError:
            pass

    def close_idle(self, older_than: float = float("inf")) -> None:
        """Close what has been idle since before `older_than` (loop time); all by default."""
        keep = [c for c in self._idle if c.idle_since >= older_than]
        drop = [c for c in self._idle if c.idle_since < older_than]
        self._idle = keep
        for connection in drop:
            connection.abort()

    def close(self) -> None:
        """The address is no longer dialled; what is in use closes when it would come back."""
        self._closed = True
        self.close_idle()

    async def connect(self, timeout_s: float | None) -> UpstreamConnection:
        """A fresh connection. Raises ConnectFailedError."""
        address = self.address
        try:
            if isinstance(address, UnixAddress):
                connection = await self._connect_unix(address, timeout_s)
            else:
                async with asyncio.timeout(timeout_s):
                    connection = await self._connect_tcp(address)
        except TimeoutError:
            raise ConnectFailedError(Failure.TIMEOUT_CONNECT, "connect timed out") from None
        except OSError as error:
            detail = error.strerror or str(error)
            raise ConnectFailedError(Failure.CONNECT, detail) from None
        if connection.transport.is_closing():
            # Nothing was sent, and nobody would be told again that the connection is gone.
            raise ConnectFailedError(Failure.CONNECT, "closed as soon as it was open")
        return connection

    async def _connect_tcp(self, address: TcpAddress) -> UpstreamConnection:
        _, protocol = await self.loop.create_connection(
            lambda: UpstreamConnection(self), address.host, address.port
        )
        return protocol

    async def _connect_unix(
        self, address: UnixAddress, timeout_s: float | None
    ) -> UpstreamConnection:
        """The kernel answers at once, so no timer is set (5 µs); only a full backlog, which says
        EAGAIN instead of making us wait, is waited for."""
        loop = self.loop
        deadline = None if timeout_s is None else loop.time() + timeout_s
        pause = _BUSY_RETRY_S
        while True:
            try:
                _, protocol = await loop.create_unix_connection(
                    lambda: UpstreamConnection(self), address.path
                )
            except OSError as error:
                if error.errno != errno.EAGAIN:
                    raise
                if deadline is not None and loop.time() + pause > deadline:
                    raise TimeoutError from None
                await asyncio.sleep(pause)
                pause = min(pause * 2, 0.1)
            else:
                return protocol
