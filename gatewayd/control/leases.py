"""What endpoints hold while they exist, and for a while after: load-table columns, bridge ports.

Owns: who has which, and when it may be given away again. Does not own: who exists
(control.registry), what is compiled from it (control.publisher).

Nothing is freed while requests still run on it: a stream of a replica that was removed an hour
ago keeps its column and its port.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from gatewayd.core.model import TcpAddress
from gatewayd.net.listeners import ListenError, bind_one
from gatewayd.net.loads import CAPACITY, LoadTable

_log = logging.getLogger(__name__)

Key = tuple[str, str]  # (Service.key, endpoint id)

# A request that still holds an old snapshot may be about to dispatch.
LINGER_S = 5.0
# A router may remember a target's URL, and what it learned about it, after it was told to forget.
PORT_QUARANTINE_S = 600.0


class LeaseError(Exception):
    """Nothing is left to lease; the text says what and which setting gives more."""


class _Lingering:
    """Keys no longer wanted, until nothing has run on them for `LINGER_S`."""

    def __init__(self) -> None:
        self._idle_since: dict[Key, float | None] = {}

    def keep(self, leased: Iterable[Key], wanted: set[Key]) -> None:
        self._idle_since = {k: self._idle_since.get(k) for k in leased if k not in wanted}

    def over(self, load: Callable[[Key], int], now: float) -> list[Key]:
        done: list[Key] = []
        for key, since in self._idle_since.items():
            if load(key):
                self._idle_since[key] = None
            elif since is None:
                self._idle_since[key] = now
            elif now - since >= LINGER_S:
                done.append(key)
        for key in done:
            del self._idle_since[key]
        return done

    def __len__(self) -> int:
        return len(self._idle_since)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._idle_since)


class IndexLeases:
    """Columns of the load table, each handed on only after its count was zero for a while."""

    def __init__(self, loads: LoadTable) -> None:
        self._loads = loads
        self._leased: dict[Key, int] = {}
        self._freed: list[int] = []
        self._next = 0
        self._lingering = _Lingering()

    def __repr__(self) -> str:
        return f"<IndexLeases {len(self._leased)} leased, {len(self._lingering)} lingering>"

    def lease(self, key: Key) -> int:
        index = self._leased.get(key)
        if index is None:
            if self._freed:
                index = self._freed.pop()
            elif self._next < CAPACITY:
                index = self._next
                self._next += 1
            else:
                raise LeaseError(f"more than {CAPACITY} endpoints at a time")
            self._leased[key] = index
        return index

    @property
    def full(self) -> bool:
        return not self._freed and self._next >= CAPACITY

    def load(self, key: Key) -> int:
        """Requests in flight, over all processes."""
        index = self._leased.get(key)
        return 0 if index is None else self._loads.load(index)

    def busy(self) -> list[tuple[Key, int]]:
        """What is no longer wanted, and how many requests still run on it."""
        return [(key, load) for key in self._lingering if (load := self.load(key))]

    def keep(self, wanted: set[Key]) -> None:
        """Everything else lingers from now on."""
        self._lingering.keep(self._leased, wanted)

    @property
    def lingering(self) -> int:
        return len(self._lingering)

    def reap(self, now: float) -> list[Key]:
        """Free what has been idle long enough."""
        done = self._lingering.over(self.load, now)
        self._freed.extend(self._leased.pop(key) for key in done)
        return done


@dataclass(frozen=True, slots=True)
class BridgeLease:
    """A loopback port that stands for one replica. The socket is control's, lent to the bridge:
    a bridge that dies refuses no connection."""

    port: int
    sock: socket.socket


class PortLeases:
    def __init__(self, first: int, last: int) -> None:
        self._first, self._last = first, last
        self._cursor = first
        self._leased: dict[Key, BridgeLease] = {}
        self._quarantine: dict[int, tuple[Key, float]] = {}  # port -> last owner, until when
        self._lingering = _Lingering()

    def __repr__(self) -> str:
        return f"<PortLeases {len(self._leased)} of {self._first}-{self._last}>"

    def lease(self, key: Key, now: float) -> BridgeLease:
        """The replica's port for its life; a replica that comes back soon gets its own again."""
        found = self._leased.get(key)
        if found is None:
            found = self._leased[key] = self._bind(key, now)
        return found

    def get(self, key: Key) -> BridgeLease | None:
        return self._leased.get(key)

    def by_port(self) -> dict[int, BridgeLease]:
        return {lease.port: lease for lease in self._leased.values()}

    def keep(self, wanted: set[Key]) -> None:
        """Everything else lingers from now on."""
        self._lingering.keep(self._leased, wanted)

    @property
    def lingering(self) -> int:
        return len(self._lingering)

    def reap(self, load: Callable[[Key], int], now: float) -> list[Key]:
        """Close what has been idle long enough."""
        done = self._lingering.over(load, now)
        for key in done:
            lease = self._leased.pop(key)
            lease.sock.close()
            self._quarantine[lease.port] = (key, now + PORT_QUARANTINE_S)
        return done

    def close(self) -> None:
        for lease in self._leased.values():
            lease.sock.close()
        self._leased.clear()

    def _bind(self, key: Key, now: float) -> BridgeLease:
        self._quarantine = {p: held for p, held in self._quarantine.items() if held[1] > now}
        own = [port for port, (owner, _) in self._quarantine.items() if owner == key]
        used = {lease.port for lease in self._leased.values()}
        for port in (*own, *self._from_cursor()):
            if port in used or (port in self._quarantine and port not in own):
                continue
            try:
                sock = bind_one(TcpAddress("127.0.0.1", port))
            except ListenError as error:
                _log.debug("bridge port skipped: %s", error)
                continue
            self._quarantine.pop(port, None)
            if port not in own:
                self._cursor = port + 1
            return BridgeLease(port, sock)
        raise LeaseError(f"no free bridge port in {self._first}-{self._last} (see `ports.bridge`)")

    def _from_cursor(self) -> Iterable[int]:
        # Round and round, so that a port rests as long as possible.
        yield from range(self._cursor, self._last + 1)
        yield from range(self._first, min(self._cursor, self._last + 1))
