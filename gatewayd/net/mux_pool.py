"""Shared connections to one address, and making new ones.

Owns: which connection takes a request, connect errors. Does not own: a connection (net.mux), when
idle ones are too old (the owner sweeps).
"""

from __future__ import annotations

import asyncio
import logging

from gatewayd.core.model import Address, UnixAddress
from gatewayd.core.retry import Failure
from gatewayd.net.mux import Mux
from gatewayd.net.pool import ConnectFailedError

_log = logging.getLogger("gatewayd.proxy")


class MuxPool:
    """Connections to one address; the first that has room is used, so that others grow idle."""

    def __init__(self, address: Address, loop: asyncio.AbstractEventLoop) -> None:
        self.address = address
        self._loop = loop
        self._all: list[Mux] = []
        self._connecting = asyncio.Lock()
        self._warned = False

    def __repr__(self) -> str:
        return f"<MuxPool {self.address} {self._all}>"

    @property
    def is_open(self) -> bool:
        """A connection is that takes requests."""
        return any(not mux.retired for mux in self._all)

    def take(self) -> Mux | None:
        for mux in self._all:
            if mux.free:
                return mux
        return None

    async def connect(self, timeout_s: float) -> Mux:
        """A connection with room, perhaps one that somebody else has just made. Raises
        ConnectFailedError."""
        try:
            async with asyncio.timeout(timeout_s), self._connecting:
                return self.take() or await self._connect()
        except TimeoutError:
            raise ConnectFailedError(Failure.TIMEOUT_CONNECT, "connect timed out") from None
        except OSError as error:
            raise ConnectFailedError(Failure.CONNECT, error.strerror or str(error)) from None

    async def _connect(self) -> Mux:
        loop, address = self._loop, self.address
        if isinstance(address, UnixAddress):
            _, mux = await loop.create_unix_connection(self._new, address.path)
        else:
            _, mux = await loop.create_connection(self._new, address.host, address.port)
        self._all = [known for known in self._all if not known.retired]
        self._all.append(mux)
        return mux

    def _new(self) -> Mux:
        return Mux(self._loop, self._foreign)

    def _foreign(self) -> None:
        if not self._warned:
            self._warned = True
            _log.warning("%s does not speak HTTP/2, so it cannot be asked", self.address)

    def retire(self) -> None:
        """The address is no longer asked; what is open ends there."""
        for mux in self._all:
            mux.retire()

    def close(self) -> None:
        for mux in self._all:
            mux.close()

    def close_idle(self, older_than: float) -> None:
        """Close what has had no stream since before `older_than` (loop time)."""
        for mux in self._all:
            if mux.idle and mux.idle_since < older_than:
                mux.retire()
