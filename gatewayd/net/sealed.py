"""Memory that several processes map, and that none of them can take away from another.

Owns: making it, mapping it as an array. Does not own: its layout (net.loads, net.buckets,
net.demand).
"""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import Literal


def sealed(name: str, size: int) -> int:
    """The descriptor of so many zero bytes; `name` is shown in /proc."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    # Nobody may shrink it: a reader beyond the end would die of SIGBUS.
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return fd


class Cells:
    """All of it as an array of numbers. Takes over `fd`: `close` closes it."""

    __slots__ = ("_cells", "_map", "fd")

    def __init__(self, fd: int, kind: Literal["I", "q"]) -> None:
        self.fd = fd
        self._map = mmap.mmap(fd, 0)
        self._cells = memoryview(self._map).cast(kind)

    def close(self) -> None:
        self._cells.release()
        self._map.close()
        os.close(self.fd)
