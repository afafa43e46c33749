"""Memory that several processes map, and that none of them can take away from another.

Owns: making it. Does not own: its layout (net.loads, net.buckets, net.demand).
"""

from __future__ import annotations

import fcntl
import os


def sealed(name: str, size: int) -> int:
    """The descriptor of so many zero bytes; `name` is shown in /proc."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    # Nobody may shrink it: a reader beyond the end would die of SIGBUS.
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return fd
