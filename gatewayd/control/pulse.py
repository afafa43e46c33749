"""One wake-up a second, shared by all of control that looks at something every second.

Owns: when. Does not own: what is looked at.

What costs is waking: the processor has forgotten an idle process by then, and each wake-up takes
from half a millisecond to ten, however little is done in it (where a host takes memory back from
its virtual machines, each page is found anew). So who looks often has no timer of its own, a report
of a worker that wakes control about then is the wake-up, and while nobody has anything to report
there is one in two seconds.
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
_LATE_SHARE: Final = 1.1  # when nobody has: later than the reports that come once in a period
_CALM: Final = 2  # periods, when nobody has reported since the last beat, either
_BEHIND_SHARE: Final = 0.1  # the rounds of resting workers, which are at every other whole second


class Pulse:
    """A beat comes after 0.9 to 2.9 periods; after a stall there is one, however many it took."""

    def __init__(self, period_s: float = _PERIOD_S) -> None:
        self.period_s = period_s
        self._calls: list[Callable[[], None]] = []
        self._began = 0.0  # the last beat
        self._woken = False  # since then, or in it
        self._timer: asyncio.TimerHandle | None = None
        self._beating: asyncio.Handle | None = None

    def __repr__(self) -> str:
        return f"<Pulse of {self.period_s:g} s, {len(self._calls)} calls>"

    def each(self, call: Callable[[], None]) -> None:
        """At each beat from now on."""
        self._calls.append(call)

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._began = loop.time()
        self._wait(loop, calm=False)

    def awake(self) -> None:
        """Control is awake anyway. The beat comes when what is there to be read has been read."""
        if self._timer is None or self._beating is not None:
            return
        loop = asyncio.get_running_loop()
        first, self._woken = not self._woken, True
        if loop.time() >= self._began + self.period_s * _EARLY_SHARE:
            self._beating = loop.call_soon(self._beat)
        elif first:
            # Who reports now does it again in a period, and that is to be the beat.
            self._wait(loop, calm=False)

    def hurry(self) -> None:
        """In a beat: the next one is to come in one period, whether or not anybody reports."""
        self._woken = True

    def stop(self) -> None:
        for handle in (self._timer, self._beating):
            if handle is not None:
                handle.cancel()
        self._timer = self._beating = None

    def _wait(self, loop: asyncio.AbstractEventLoop, *, calm: bool) -> None:
        if self._timer is not None:
            self._timer.cancel()
        now, period = loop.time(), self.period_s
        late = now + period * _LATE_SHARE
        at = self._behind_a_rest(now + period * _EARLY_SHARE) if calm else late
        self._timer = loop.call_at(at, self._beat)

    def _behind_a_rest(self, earliest: float) -> float:
        """Just behind a round of resting workers."""
        rests, behind = self.period_s * _CALM, self.period_s * _BEHIND_SHARE
        return math.ceil((earliest - behind) / rests) * rests + behind

    def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        self._began = loop.time()
        self._beating = None
        reported, self._woken = self._woken, False
        for call in self._calls:
            try:
                call()
            except Exception:
                _log.exception("what is done once a second failed; it is tried again")
        if self._timer is not None:  # not stopped meanwhile
            self._wait(loop, calm=not (reported or self._woken))
