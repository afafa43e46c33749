"""One wake-up a second, shared by all of control that looks at something every second.

Owns: when. Does not own: what is looked at.

What costs is waking: the processor has forgotten an idle process by then, and each wake-up takes
about half a millisecond however little is done in it. So who looks often has no timer of its own,
and a report of a worker that wakes control about then is the wake-up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

_log = logging.getLogger(__name__)

_PERIOD_S: Final = 1.0
_EARLY_SHARE: Final = 0.9  # of the period: from then on whoever wakes control causes the beat
_LATE_SHARE: Final = 1.1  # when nobody has: later than the reports that come once in a period


class Pulse:
    """A beat comes after 0.9 to 1.1 periods; after a stall there is one, however many it took."""

    def __init__(self, period_s: float = _PERIOD_S) -> None:
        self.period_s = period_s
        self._calls: list[Callable[[], None]] = []
        self._early_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._beating: asyncio.Handle | None = None

    def __repr__(self) -> str:
        return f"<Pulse of {self.period_s:g} s, {len(self._calls)} calls>"

    def each(self, call: Callable[[], None]) -> None:
        """At each beat from now on."""
        self._calls.append(call)

    def start(self) -> None:
        self._wait(asyncio.get_running_loop())

    def awake(self) -> None:
        """Control is awake anyway. The beat comes when what is there to be read has been read."""
        if self._timer is not None and self._beating is None:
            loop = asyncio.get_running_loop()
            if loop.time() >= self._early_at:
                self._beating = loop.call_soon(self._beat)

    def stop(self) -> None:
        for handle in (self._timer, self._beating):
            if handle is not None:
                handle.cancel()
        self._timer = self._beating = None

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._early_at = loop.time() + self.period_s * _EARLY_SHARE
        self._timer = loop.call_later(self.period_s * _LATE_SHARE, self._beat)

    def _beat(self) -> None:
        self._beating = None
        self._wait(asyncio.get_running_loop())
        for call in self._calls:
            try:
                call()
            except Exception:
                _log.exception("what is done once a second failed; it is tried again")
