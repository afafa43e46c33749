"""How much each service is asked for: looked at when workers report, kept for five minutes.

Owns: which service is counted in which column, the history of each, carrying both over to the next
control. Does not own: counting (proxy.handler), the arithmetic (core.demand), the file
(control.demand_store).

A service is known here by its first domain, so one that is registered anew inherits its history,
and what still runs of the old one is its own. Of a control that was killed, workers live on and
count on in its table, as long as they drain: that table is read too.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final

from gatewayd.control.demand_store import DemandStore, Kept
from gatewayd.core.demand import (
    WINDOWS_S,
    Count,
    Demand,
    History,
    Moment,
    Window,
    thinned,
    window,
)
from gatewayd.core.model import Service
from gatewayd.net.demand import CAPACITY, NOBODY, DemandTable

_log = logging.getLogger(__name__)
_SAVE_EVERY_MS: Final = 5000
_LOOK_EVERY_MS: Final = 60_000  # if nothing is counted: what is old is forgotten
_KEPT_STEP_MS: Final = 5000  # what is kept on disk is as exact as this in time, and whole in number


class _Counted:
    """One service's column and history. `before` was counted by earlier controls; `inherited` is
    the column of the last one's table, if that still counts."""

    __slots__ = ("before", "column", "history", "inherited")

    def __init__(self, column: int, history: History, before: Demand) -> None:
        self.column = column
        self.history = history
        self.before = before
        self.inherited: int | None = None


class Demands:
    def __init__(
        self,
        table: DemandTable,
        store: DemandStore,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._table = table
        self._store = store
        self._clock = clock
        self._predecessor: DemandTable | None = None
        self._counted: dict[str, _Counted] = {}  # by a service's first domain
        self._current: set[str] = set()
        self._free: list[int] = []
        self._columns = NOBODY + 1  # that were ever given away
        self._saving: asyncio.Future[None] | None = None
        self._counts = b""  # of all columns, at the last look
        self._looked_ms = -_LOOK_EVERY_MS
        self._unsaved = False  # something has changed since the file was written
        self._unknown = False  # a service that is counted is not in it: this does not wait
        self._saved_ms = -_SAVE_EVERY_MS
        self._begun = False
        self._given_away = False

    def __repr__(self) -> str:
        return f"<Demands {len(self._current)} services, {len(self._counted)} remembered>"

    def restore(self, survivors: Iterable[int]) -> None:
        """Go on from where an earlier control was; `survivors` are pids of its workers."""
        now = self._now()
        table, kept = self._store.load(now)
        found = (DemandTable.held_by(pid, table) for pid in survivors)
        self._predecessor = next(filter(None, found), None) if kept else None
        for name, entry in kept.items():
            if (counted := self._lease(name, entry.moments)) is None:
                return
            if self._predecessor is not None and 0 < entry.column < CAPACITY:
                counted.inherited = entry.column
                counted.before = counted.before.plus(entry.total.minus(entry.counted))
            else:
                counted.before = counted.before.plus(entry.total.ended(now))

    def begin(self) -> None:
        self._begun = True

    def beat(self) -> float:
        """To be called when workers have counted something, and after as many seconds as it
        returns."""
        if not self._begun:
            return 1.0
        now = self._now()
        counts = self._table.counts(self._columns)
        moved = counts != self._counts.ljust(len(counts), b"\0") or self._predecessor is not None
        self._counts = counts
        if moved or now >= self._looked_ms + _LOOK_EVERY_MS:
            self._looked_ms = now
            self._look()
        self._unsaved = self._unsaved or moved
        next_ms = self._looked_ms + _LOOK_EVERY_MS
        if self._predecessor is not None:
            next_ms = now + 1000  # nobody reports what its workers count
        if not self._given_away and (self._unknown or self._unsaved):
            next_ms = min(next_ms, self._save_in_time(now))
        return (next_ms - now) / 1000

    def _save_in_time(self, now: int) -> int:
        """By when it is to be called again."""
        if not self._unknown and now < self._saved_ms + _SAVE_EVERY_MS:
            return self._saved_ms + _SAVE_EVERY_MS
        if self._saving is not None and not self._saving.done():
            return now + 1000
        if self._unsaved:
            self._saved_ms = now
        self._unknown = self._unsaved = False
        self._saving = asyncio.ensure_future(asyncio.to_thread(self._save, self._kept()))
        return now + _LOOK_EVERY_MS

    async def aclose(self) -> None:
        """The last word is kept too. What was never begun has none."""
        await self.give_away()
        if self._predecessor is not None:
            self._predecessor.close()
            self._predecessor = None

    async def give_away(self) -> None:
        """The last word is kept, and from now on the file is a successor's."""
        if self._given_away:
            return
        self._given_away = True
        if self._saving is not None:
            await asyncio.gather(self._saving, return_exceptions=True)
        if self._begun:
            self._look()
            self._save(self._kept())

    def take_back(self) -> None:
        """There is no successor after all."""
        self._given_away = False

    def _save(self, kept: dict[str, Kept]) -> None:
        """In a thread: of hundreds of services it takes tens of milliseconds."""
        less = {
            name: replace(entry, moments=thinned(entry.moments, _KEPT_STEP_MS))
            for name, entry in kept.items()
        }
        self._store.save(self._table.id, less)

    # --- what others tell

    def column(self, service: Service) -> int:
        """Where the workers count a service from now on."""
        counted = self._counted.get(_name(service)) or self._lease(_name(service), ())
        return NOBODY if counted is None else counted.column

    def keep(self, services: Iterable[Service]) -> None:
        """Everything else is forgotten once nothing of it runs or can be asked for."""
        self._current = {_name(service) for service in services}

    def died(self, slot: int) -> None:
        """The worker of a slot is gone, and what it ran is over."""
        if slot < self._table.slots:
            self._table.end_row(slot, self._columns, self._now())

    def predecessors_gone(self) -> None:
        """The workers of an earlier control have ended."""
        if self._predecessor is None:
            return
        now = self._now()
        for counted in self._counted.values():
            if counted.inherited is not None:
                old = self._predecessor.read(counted.inherited).ended(now)
                counted.before = counted.before.plus(old)
                counted.inherited = None
        self._predecessor.close()
        self._predecessor = None
        self._look()
        self._unsaved = True

    # --- what is asked

    def windows(self, services: Iterable[Service], count: Count) -> dict[str, dict[int, Window]]:
        """By `Service.key`, then by seconds."""
        now = self._now()
        found: dict[str, dict[int, Window]] = {}
        for service in services:
            counted = self._counted.get(_name(service))
            if counted is None:
                found[service.key] = dict.fromkeys(WINDOWS_S, Window(0, 0.0))
                continue
            demand = self._total(counted)
            found[service.key] = {
                seconds: window(counted.history, demand, now, seconds, count)
                for seconds in WINDOWS_S
            }
        return found

    def begun(self, service: Service, seconds: int) -> int:
        """How many requests began in the last seconds, of at most the longest window."""
        counted = self._counted.get(_name(service))
        if counted is None:
            return 0
        return window(
            counted.history, self._total(counted), self._now(), seconds, "started"
        ).requests

    # --- looking

    def _now(self) -> int:
        return int(self._clock() * 1000)

    def _total(self, counted: _Counted) -> Demand:
        total = counted.before.plus(self._table.read(counted.column))
        if counted.inherited is not None and self._predecessor is not None:
            total = total.plus(self._predecessor.read(counted.inherited))
        return total

    def _lease(self, name: str, moments: Iterable[Moment]) -> _Counted | None:
        """None when all columns are taken: the service is served, and not counted."""
        if self._free:
            column = self._free.pop()
        elif self._columns < CAPACITY:
            column = self._columns
            self._columns += 1
        else:
            _log.error("more than %d services: %s has no statistics", CAPACITY - 1, name)
            return None
        # Whatever another service has counted here before is none of this one's.
        before = Demand().minus(self._table.read(column))
        history = History(moments or (Moment(self._now(), 0, 0, 0),))
        counted = self._counted[name] = _Counted(column, history, before)
        self._unknown = True
        return counted

    def _look(self) -> None:
        now = self._now()
        for name, counted in list(self._counted.items()):
            demand = self._total(counted)
            counted.history.note(now, demand)
            if name not in self._current and not demand.running and counted.history.idle(now):
                del self._counted[name]
                self._unsaved = True
                self._free.append(counted.column)

    def _kept(self) -> dict[str, Kept]:
        now = self._now()
        return {
            name: Kept(
                total=self._total(counted),
                moments=counted.history.moments(now),
                column=counted.column,
                counted=self._table.read(counted.column),
            )
            for name, counted in self._counted.items()
        }


def _name(service: Service) -> str:
    return service.domains[0].lower()
