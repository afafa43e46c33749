"""Signs of life of the data plane's processes, in memory that control reads when it looks.

Owns: the memory and its layout. Does not own: how often a process promises (proxy.sweeper), what
follows from a promise that is not kept (control.workers).

A message would wake control for each of them; and what waking costs, on a machine that does little
else, is most of what an idle gateway costs.
"""

from __future__ import annotations

import os

from gatewayd.net.sealed import Cells, sealed

_CELL = 8
_MS = 1000


class Heartbeats(Cells):
    """Made once by control (`create`), attached by each process as one slot (`attach`). Times are
    those of CLOCK_MONOTONIC, in seconds, as the loop's are."""

    __slots__ = ("_own", "slots")

    def __init__(self, fd: int, slot: int | None) -> None:
        slots = os.fstat(fd).st_size // _CELL
        if slot is not None and not 0 <= slot < slots:
            raise ValueError(f"slot {slot} is not one of {slots}")
        super().__init__(fd, "Q")
        self.slots = slots
        # A table without a slot may not promise: its cell lies beyond the end, an IndexError.
        self._own = self.slots if slot is None else slot

    @classmethod
    def create(cls, slots: int) -> Heartbeats:
        """Nobody has promised anything; `fd` is what others attach."""
        return cls(sealed("gatewayd-heartbeats", slots * _CELL), None)

    @classmethod
    def attach(cls, fd: int, slot: int) -> Heartbeats:
        """Promise as `slot`. Takes over `fd`: `close` closes it."""
        return cls(fd, slot)

    def promise(self, at: float) -> None:
        """To promise again by then."""
        self._cells[self._own] = int(at * _MS)

    def promised(self, slot: int) -> float:
        """By when the next one is due; 0 before the first."""
        return self._cells[slot] / _MS

    def clear(self, slot: int) -> None:
        """Its process is gone."""
        self._cells[slot] = 0

    def __repr__(self) -> str:
        return f"<Heartbeats of {self.slots} slots, fd {self.fd}>"
