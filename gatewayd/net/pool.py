"""Idle connections to one address, and making new ones.

Owns: reuse, connect errors. Does not own: an exchange on a connection (net.upstream), which
address (proxy), when idle ones are too old (the owner sweeps).
"""

from __future__ import annotations

import asyncio
import errno
import logging
from typing import Final

from gatewayd.core.headers import ResponseHead, read_response
from gatewayd.core.model import Address, TcpAddress, UnixAddress
from gatewayd.core.retry import Failure
from gatewayd.net.outbox import Outbox
from gatewayd.net.upstream import JOIN_SIZE, UpstreamConnection

_log = logging.getLogger(__name__)

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
        "_idle",
        "_starved",
        "address",
        "idle_s",
        "known_head",
        "known_length",
        "known_read",
        "known_strip",
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
        # The last head of an answer, how it was read, and what that gave: there is a Date in most,
        # so within a second it comes again.
        self.known_head = b""
        self.known_strip: frozenset[bytes] = frozenset()
        self.known_read: ResponseHead = None  # type: ignore[assignment]
        self.known_length = -1  # of the body, if it is small
        self._closed = False
        self._starved = False  # and that has been said

    def __repr__(self) -> str:
        return f"<Pool {self.address} [{len(self._idle)} idle]>"

    @property
    def has_idle(self) -> bool:
        return bool(self._idle)

    def read_head(self, data: bytes, strip: frozenset[bytes], *, keep: bool) -> ResponseHead:
        """`read_response`. With `keep` the caller does not change it, and it is the one that is
        known from now on, if its body can be told from it alone. Raises BadResponse."""
        read = read_response(data, strip)
        if keep and (read.length >= 0 or read.chunked) and read.status not in _BODYLESS:
            self.known_head, self.known_strip, self.known_read = data, strip, read
            self.known_length = read.length if read.length <= JOIN_SIZE else -1
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
        except (OSError, UnicodeError) as error:  # the latter: no name that DNS could have
            detail = getattr(error, "strerror", None) or str(error)
            self._note(getattr(error, "errno", None), detail)
            raise ConnectFailedError(Failure.CONNECT, detail) from None
        self._starved = False
        if connection.transport.is_closing():
            # Nothing was sent, and nobody would be told again that the connection is gone.
            raise ConnectFailedError(Failure.CONNECT, "closed as soon as it was open")
        return connection

    def _note(self, number: int | None, detail: str) -> None:
        """Nobody else says that the fault is on this side: to clients it is the replica's."""
        if number in (errno.EMFILE, errno.ENFILE) and not self._starved:
            self._starved = True
            where = self.address
            _log.error(
                "no descriptor is left to connect to %s (%s): see `ulimit -n`", where, detail
            )

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
