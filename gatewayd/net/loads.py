"""Requests in flight per endpoint, counted by every process in one shared table.

Owns: the memory and its layout. Does not own: which endpoint has which index (control), when a
request counts (proxy, bridge), what follows from the sums (core.balancer).

One cell per (slot, endpoint index) and one writer per cell, so no lock is needed: a process
writes only the cells of its slot, a reader adds up the slots. The cells of one endpoint lie
beside each other, because sums are read for every candidate of every request.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Iterable

from gatewayd.net.sealed import Cells, sealed

CAPACITY = 16384  # endpoint indexes 0..16383; 64 KiB per slot
_CELL = 4


class LoadTable(Cells):
    """Made once by control (`create`), attached by each process as one slot (`attach`).

    A process that takes over a slot calls `clear_row` for it first: its predecessor may have
    died with requests counted.
    """

    __slots__ = ("_own", "_stride", "_unpack", "slots")

    def __init__(self, fd: int, slots: int, slot: int | None) -> None:
        if slot is not None and not 0 <= slot < slots:
            raise ValueError(f"slot {slot} is not one of {slots}")
        size = CAPACITY * slots * _CELL
        if os.fstat(fd).st_size != size:
            raise ValueError(f"load table of {os.fstat(fd).st_size} bytes, expected {size}")
        super().__init__(fd, "I")
        self.slots = slots
        self._unpack = struct.Struct(f"{slots}I").unpack_from
        self._stride = slots * _CELL
        # A table without a slot may not write: its cells lie beyond the end and raise IndexError.
        self._own = CAPACITY * slots if slot is None else slot

    @classmethod
    def create(cls, slots: int) -> LoadTable:
        """A table of zeros that can count nothing itself; `fd` is what others attach."""
        return cls(sealed("gatewayd-loads", CAPACITY * slots * _CELL), slots, None)

    @classmethod
    def attach(cls, fd: int, slots: int, slot: int) -> LoadTable:
        """Count as `slot`. Takes over `fd`: `close` closes it."""
        return cls(fd, slots, slot)

    def add(self, index: int) -> None:
        """A request was dispatched to the endpoint."""
        self._cells[index * self.slots + self._own] += 1

    def done(self, index: int) -> None:
        """The request ended; without a matching `add` nothing happens."""
        cells = self._cells
        cell = index * self.slots + self._own
        if count := cells[cell]:
            cells[cell] = count - 1

    def own(self, index: int) -> int:
        """Requests that this slot alone has in flight."""
        return self._cells[index * self.slots + self._own]

    def load(self, index: int) -> int:
        """Requests in flight to the endpoint, over all slots."""
        return sum(self._unpack(self._map, index * self._stride))

    def loads(self, indexes: Iterable[int]) -> list[int]:
        """`load` of each, in their order."""
        unpack, cells, stride = self._unpack, self._map, self._stride
        return [sum(unpack(cells, index * stride)) for index in indexes]

    def clear_row(self, slot: int) -> None:
        """Forget what a slot counted: its process is gone, or has just taken it over."""
        if not 0 <= slot < self.slots:
            raise ValueError(f"slot {slot} is not one of {self.slots}")
        self._cells[slot :: self.slots] = memoryview(array("I", bytes(CAPACITY * _CELL)))

    def __repr__(self) -> str:
        return f"<LoadTable {self.slots} slots x {CAPACITY} endpoints, fd {self.fd}>"
