"""What lies in the kernel between us and a peer.

Owns: asking the kernel. Does not own: what follows (flow, proxy.connection).
"""

from __future__ import annotations

import asyncio
import fcntl
import sys
import termios


def unsent(transport: asyncio.Transport) -> int:
    """Bytes that the peer has not acknowledged (SIOCOUTQ, tcp(7) and unix(7))."""
    return _ask(transport, termios.TIOCOUTQ)


def unread(transport: asyncio.Transport) -> int:
    """Bytes that have come and were not read yet (SIOCINQ, tcp(7) and unix(7))."""
    return _ask(transport, termios.FIONREAD)


def _ask(transport: asyncio.Transport, request: int) -> int:
    sock = transport.get_extra_info("socket")
    return int.from_bytes(fcntl.ioctl(sock.fileno(), request, b"\0" * 4), sys.byteorder)
