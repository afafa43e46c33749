"""Whose the state is, and the processes: ours, a predecessor's, or from now on a successor's.

Owns: the record of data-plane processes, ending those that were left to us, standing still while a
successor reads. Does not own: the conversation with either (control.succession).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from gatewayd.control.demands import Demands
from gatewayd.control.keeper import Keeper
from gatewayd.control.succession import Predecessor
from gatewayd.control.survivors import Known, StateDir, dismiss
from gatewayd.control.tasks import unless_told
from gatewayd.control.workers import Workers

if TYPE_CHECKING:  # it takes long to import: see control.admin
    from gatewayd.control.api.server import AdminServer

_SURVIVOR_GRACE_S: Final = 5.0
_LAST_CALLS_S: Final = 20.0
_LAST_CHANGES_S: Final = 45.0  # longer than a registration waits for its certificate


class Custody:
    def __init__(
        self, state_dir: StateDir, workers: Workers, keeper: Keeper, demands: Demands
    ) -> None:
        self.survivors: list[Known] = []  # a predecessor's processes that may still run
        self.admin: AdminServer | None = None
        self._state_dir = state_dir
        self._workers = workers
        self._keeper = keeper
        self._demands = demands
        self._given_away = False

    def __repr__(self) -> str:
        whose = "a successor's" if self._given_away else "ours"
        return f"<Custody {whose}, {len(self.survivors)} survivors>"

    def record(self, *, ours_alone: bool = False) -> None:
        """Whoever comes after us finds every process."""
        if not self._given_away:
            ours = [process.pid for process in self._workers.processes()]
            theirs = [] if ours_alone else [process.pid for process in self.survivors]
            self._state_dir.record(ours + theirs)

    async def dismiss_survivors(self, predecessor: Predecessor | None, timeout: float) -> None:
        """A predecessor that lives drains its own, for as long as they need."""
        if predecessor is not None:
            await predecessor.gone()
        await dismiss(self.survivors, timeout + _SURVIVOR_GRACE_S)
        self.survivors = []
        self.record()
        self._demands.predecessors_gone()

    async def changes_end(self, timeout: float, stop: asyncio.Event) -> None:
        """Nobody's registration is cut, for at most `timeout` seconds or until `stop`."""
        if self.admin is not None:
            await unless_told(self.admin.changes_end(timeout), stop)

    async def give_away(self) -> None:
        """What was asked is answered, everything is written, and nothing changes any more."""
        if self.admin is not None:
            await self.admin.pause(_LAST_CALLS_S, changes=_LAST_CHANGES_S)
        await self._keeper.aclose()
        await self._demands.give_away()
        self.record(ours_alone=True)  # survivors drain by themselves, and have been told
        self._given_away = True

    async def take_back(self) -> None:
        """There is no successor after all."""
        self._given_away = False
        self.record()
        self._demands.take_back()
        if self.admin is not None and self.admin.paused:
            await self.admin.resume()
