"""Loopback ports for child processes that cannot be handed a bound socket.

Owns: choosing ports that can be bound now, and that no other gateway of this machine has chosen for
a child of its own. Does not own: the race with everybody else until the child binds them; it exits
then, and is started again on another.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable, Collection

LOOPBACK = "127.0.0.1"


class PortPool:
    """Ports `first` to `last` in rotation, each given out only while the one `also` above it is
    free too, for a child that listens on both. Those that `avoid` gives, free as they may be, are
    somebody's who comes later: they are the last resort."""

    def __init__(
        self,
        first: int,
        last: int,
        *,
        also: int = 0,
        avoid: Callable[[], Collection[int]] = tuple,
    ) -> None:
        self._first = first
        self._last = last
        self._also = also
        self._avoid = avoid
        self._next = first
        self._taken: dict[int, contextlib.ExitStack] = {}  # with what keeps others from it

    def take(self) -> int:
        """Raises OSError when there is none."""
        ports: list[int] = [*range(self._next, self._last + 1), *range(self._first, self._next)]
        avoided = {port - offset for port in self._avoid() for offset in (0, self._also)}
        ports.sort(key=avoided.__contains__)
        for port in ports:
            if port not in self._taken and (claims := self._claim(port)) is not None:
                self._next = port + 1
                self._taken[port] = claims
                return port
        raise OSError(errno.EADDRINUSE, f"no free port in {self._first}-{self._last}")

    def release(self, port: int) -> None:
        if (claims := self._taken.pop(port, None)) is not None:
            claims.close()

    def _claim(self, first: int) -> contextlib.ExitStack | None:
        with contextlib.ExitStack() as claims:
            for port in {first, first + self._also}:
                try:
                    claims.enter_context(_claimed(port))
                except OSError:
                    return None
                if not free(port):
                    return None
            return claims.pop_all()


def _claimed(port: int) -> socket.socket:
    """What no other gateway gets as long as this is open: two that start at one moment would both
    find a port free, and their children meet there. A name of the kernel's, gone with its owner,
    among just those who share the loopback interface. Raises OSError if somebody has it."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        sock.bind(f"\0gatewayd port {port}")
    except OSError:
        sock.close()
        raise
    return sock


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
