"""One wake-up, shared by all of control that looks at something again and again.

Owns: when. Does not own: what is looked at.

What costs is waking: the processor has forgotten an idle process by then, and each wake-up takes
from half a millisecond to ten, however little is done in it (where a host takes memory back from
its virtual machines, each page is found anew). So who looks often has no timer of its own: a report
of a worker that wakes control about then is the wake-up, and while nobody has anything to report
there is none but those that somebody has asked for.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from typing import Final

_log = logging.getLogger(__name__)

_PERIOD_S: Final = 1.0
_EARLY_SHARE: Final = 0.9  # of the period: from then on whoever wakes control causes the beat
_LATE_SHARE: Final = 1.1  # later than the report of a worker that comes once in a period


class Pulse:
    """At most one beat in 0.9 periods; after a stall there is one, however many it took."""

    def __init__(self, period_s: float = _PERIOD_S) -> None:
        self.period_s = period_s
        self._calls: list[Callable[[], float]] = []
        self._began = 0.0  # the last beat
        self._at = math.inf  # the next one, if nobody wakes control before
        self._timer: asyncio.TimerHandle | None = None
        self._beating: asyncio.Handle | None = None
        self._stopped = True

    def __repr__(self) -> str:
        return f"<Pulse of {self.period_s:g} s, {len(self._calls)} calls>"

    def each(self, call: Callable[[], float]) -> None:
        """At each beat from now on. It returns after how many periods, which are seconds but in
        tests, it wants to be called again if nobody reports; infinity: not before somebody does."""
        self._calls.append(call)

    def start(self) -> None:
        self._stopped = False
        self._began = asyncio.get_running_loop().time()
        self._wait(self._began + self.period_s)

    def awake(self) -> None:
        """Control is awake anyway, with news. The beat comes when what is there to be read has been
        read; if there has just been one, in a period, with the next report of the same worker."""
        if self._stopped or self._beating is not None:
            return
        loop = asyncio.get_running_loop()
        now = loop.time()
        if now >= self._began + self.period_s * _EARLY_SHARE:
            self._beating = loop.call_soon(self._beat)
        elif (late := now + self.period_s * _LATE_SHARE) < self._at:
            self._wait(late)

    def stop(self) -> None:
        self._stopped = True
        for handle in (self._timer, self._beating):
            if handle is not None:
                handle.cancel()
        self._timer = self._beating = None

    def _wait(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._at = at
        if at < math.inf:
            self._timer = asyncio.get_running_loop().call_at(at, self._beat)

    def _beat(self) -> None:
        self._began = began = asyncio.get_running_loop().time()
        if self._beating is not None:
            self._beating.cancel()
            self._beating = None
        periods = math.inf
        for call in self._calls:
            try:
                periods = min(periods, call())
            except Exception:
                _log.exception("what is done once a second failed; it is tried again")
                periods = min(periods, 1.0)
        if not self._stopped:
            self._wait(began + self.period_s * max(periods, _EARLY_SHARE))
