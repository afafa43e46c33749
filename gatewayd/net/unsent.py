"""How much of what was written a peer has not taken yet.

Owns: asking the kernel. Does not own: what follows (proxy.connection).
"""

from __future__ import annotations

import asyncio
import fcntl
import sys
import termios


def unsent(transport: asyncio.Transport) -> int:
    """Bytes in the kernel that the peer has not acknowledged (SIOCOUTQ, tcp(7) and unix(7))."""
    sock = transport.get_extra_info("socket")
    size = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0" * 4)
    return int.from_bytes(size, sys.byteorder)
