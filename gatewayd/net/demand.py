"""Requests per service, counted by every worker in one shared table.

Owns: the memory and its layout. Does not own: which service has which column (control.demands),
which requests count (proxy.handler), what follows from the sums (core.demand).

Counts are cumulative. One row per slot and one writer per row, so no lock is needed. What a worker
has counted outlives it, to the last request: control ends in its row what ran when it died, and its
successor goes on from there.
"""

from __future__ import annotations

import os
import struct
from typing import Final

from gatewayd.core.demand import Demand
from gatewayd.net.sealed import Cells, sealed

CAPACITY: Final = 16384  # columns
NOBODY: Final = 0  # the column of services beyond the capacity, which nobody reads
_FIELDS: Final = 4  # as in Demand
_CELL: Final = 8
_NAME: Final = "gatewayd-demand"


class DemandTable(Cells):
    """Made once by control (`create`), attached by each worker as one slot (`attach`)."""

    __slots__ = ("_own", "_stride", "_unpack", "slots")

    def __init__(self, fd: int, slot: int | None) -> None:
        size = os.fstat(fd).st_size
        slots, rest = divmod(size, CAPACITY * _FIELDS * _CELL)
        if rest or not slots or (slot is not None and not 0 <= slot < slots):
            raise ValueError(f"demand table of {size} bytes has no row {slot}")
        super().__init__(fd, "q")
        self.slots = slots
        self._unpack = struct.Struct(f"{slots * _FIELDS}q").unpack_from
        self._stride = slots * _FIELDS
        # A table without a slot may not count: its cells lie beyond the end and raise IndexError.
        self._own = CAPACITY * self._stride if slot is None else slot * _FIELDS

    @classmethod
    def create(cls, slots: int) -> DemandTable:
        """A table of zeros that can count nothing itself; `fd` is what others attach."""
        return cls(sealed(_NAME, CAPACITY * slots * _FIELDS * _CELL), None)

    @classmethod
    def attach(cls, fd: int, slot: int) -> DemandTable:
        """Count as `slot`. Takes over `fd`: `close` closes it."""
        return cls(fd, slot)

    @classmethod
    def held_by(cls, pid: int, table: int) -> DemandTable | None:
        """The table of that id, if a worker of a control that is gone still counts in it."""
        folder = f"/proc/{pid}/fd"
        try:
            for name in os.listdir(folder):
                path = f"{folder}/{name}"
                if not os.readlink(path).startswith(f"/memfd:{_NAME}"):
                    continue
                if os.stat(path).st_ino == table:
                    return cls(os.open(path, os.O_RDWR | os.O_CLOEXEC), None)
        except (OSError, ValueError):  # it ended, or is not ours to look at
            pass
        return None

    @property
    def id(self) -> int:
        """Its own on this machine, whoever holds it."""
        return os.fstat(self.fd).st_ino

    def began(self, column: int, at_ms: int) -> None:
        cells = self._cells
        cell = column * self._stride + self._own
        cells[cell + 3] += at_ms  # first: see Demand.ages_ms
        cells[cell] += 1

    def ended(self, column: int, count: int, *, began_ms: int, ended_ms: int) -> None:
        """So many have ended; the sum of the times at which they began, and of those at which they
        ended."""
        cells = self._cells
        cell = column * self._stride + self._own
        cells[cell + 1] += count
        cells[cell + 2] += ended_ms - began_ms
        cells[cell + 3] -= began_ms

    def read(self, column: int) -> Demand:
        """Over all slots."""
        cells = self._unpack(self._map, column * self._stride * _CELL)
        return Demand(sum(cells[0::4]), sum(cells[1::4]), sum(cells[2::4]), sum(cells[3::4]))

    def counts(self, columns: int) -> bytes:
        """Of the first so many, over all slots: equal when nothing has been counted between."""
        return self._map[: columns * self._stride * _CELL]

    def end_row(self, slot: int, columns: int, now_ms: int) -> None:
        """The process of a slot is gone: what it ran, in the first `columns`, has ended."""
        if not 0 <= slot < self.slots:
            raise ValueError(f"slot {slot} is not one of {self.slots}")
        cells = self._cells
        for cell in range(slot * _FIELDS, columns * self._stride, self._stride):
            row = Demand(*cells[cell : cell + _FIELDS])
            if row.running or row.open_ms:
                for offset, value in enumerate(row.ended(now_ms)):
                    cells[cell + offset] = value

    def __repr__(self) -> str:
        return f"<DemandTable {self.slots} slots x {CAPACITY} services, fd {self.fd}>"
