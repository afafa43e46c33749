"""Loopback ports for child processes that cannot be handed a bound socket.

Owns: choosing ports that can be bound now. Does not own: the race until the child binds them; it
exits then, and is started again on another.
"""

from __future__ import annotations

import errno
import itertools
import socket

LOOPBACK = "127.0.0.1"


class PortPool:
    """Ports `first` to `last` in rotation, each given out only while the one `also` above it is
    free too, for a child that listens on both."""

    def __init__(self, first: int, last: int, *, also: int = 0) -> None:
        self._first = first
        self._last = last
        self._also = also
        self._next = first
        self._taken: set[int] = set()

    def take(self) -> int:
        """Raises OSError when there is none."""
        after, before = range(self._next, self._last + 1), range(self._first, self._next)
        for port in itertools.chain(after, before):
            if port not in self._taken and free(port) and free(port + self._also):
                self._next = port + 1
                self._taken.add(port)
                return port
        raise OSError(errno.EADDRINUSE, f"no free port in {self._first}-{self._last}")

    def release(self, port: int) -> None:
        self._taken.discard(port)


def free(port: int) -> bool:
    """Whether `port` can be bound on loopback."""
    if not 0 < port < 65536:
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As a server binds: connections that linger in TIME_WAIT do not keep a port taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True
