"""Loopback ports for tests that need a range of them: below those the kernel gives to clients."""

from __future__ import annotations

import os
import socket

_FIRST, _LAST = 12_000, 19_900


def free_range(count: int) -> range:
    """`count` neighbouring ports that can be bound now; another place for each process."""
    span = _LAST - _FIRST - count
    start = os.getpid() * 64 % span
    for offset in range(0, span, count):
        first = _FIRST + (start + offset) % span
        ports = range(first, first + count)
        if all(_free(port) for port in ports):
            return ports
    raise OSError("no free ports")


def _free(port: int) -> bool:
    try:
        with socket.create_server(("127.0.0.1", port)):
            return True
    except OSError:
        return False
