"""When a process looks at what has deadlines: ten times a second while it serves, once a second
while connections are open, and else in two.

Owns: the exchanges that run, the clock of rounds, the promise of the next one, which is the
heartbeat. Does not own: what a deadline means (forward), what is done every second (plane).

An idle process pays for each page of memory that it touches when it wakes, so this is one timer
that calls functions: a task would touch twice as much. And the rounds come at whole seconds of the
clock that all processes share, so that control is woken by all of them at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from gatewayd.core import reply as replies

if TYPE_CHECKING:
    from gatewayd.proxy.forward import Forward

_log = logging.getLogger("gatewayd.proxy")

_SWEEP_S: Final = 0.1  # running exchanges, whose shortest deadlines are fractions of a second
_SLOW_S: Final = 1.0  # everything else that is open
_REST_S: Final = 2.0  # nothing is


class Sweeper:
    """`active` are the forwards that run now. While `resting`, nothing is open.

    `slow` is what is done once a second, and not while resting: it is given the loop's time, and
    returns whether anything is open. `promise` is told when the next of such rounds comes.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, slow: Callable[[float], bool]) -> None:
        self.active: set[Forward] = set()
        self.resting = False
        self._loop = loop
        self._slow = slow
        self._promise: Callable[[float], None] = _nobody_waits
        self._quiet = False  # at the last slow round nothing was open
        self._slow_at = 0.0
        self._slowly = False  # no round comes before that
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Sweeper of {len(self.active)} exchanges>"

    def start(self, promise: Callable[[float], None] | None = None) -> None:
        if promise is not None:
            self._promise = promise
        now = self._loop.time()
        self._slow_next(now, _SLOW_S)
        self._wait(now)

    def close(self) -> None:
        """No round comes any more, whatever still begins."""
        self.resting = self._slowly = False
        if self._timer is not None:
            self._timer.cancel()

    def stir(self) -> None:
        """To be called while `resting` when something has opened, as soon as `slow` sees it."""
        self.close()
        self._slow_at = 0.0
        self._round()

    def begin(self, forward: Forward) -> None:
        """It runs from now on, and has deadlines."""
        self.active.add(forward)
        if self._slowly:
            self.close()
            self._wait(self._loop.time())

    def _wait(self, now: float) -> None:
        self._slowly = not self.active
        at = self._slow_at if self._slowly else _next(now, _SWEEP_S)
        self._timer = self._loop.call_at(at, self._round)

    def _round(self) -> None:
        now = self._loop.time()
        if self.resting:
            self._slow_next(now, _REST_S)
            self._timer = self._loop.call_at(self._slow_at, self._round)
            return
        for forward in list(self.active):
            if forward.sweep_at <= now:
                self._sweep(forward, now)
        if now >= self._slow_at - _SWEEP_S / 2:  # timers are as exact as a millisecond
            try:
                quiet, self._quiet = self._quiet, not (self._slow(now) or self.active)
                # Twice: what ends a moment after its connection is told by the second.
                self.resting = quiet and self._quiet
            except Exception:
                _log.exception("what is done every second failed; it is done again in the next")
            self._slow_next(now, _REST_S if self.resting else _SLOW_S)
        self._wait(now)

    def _slow_next(self, now: float, period_s: float) -> None:
        self._slow_at = at = _next(now, period_s)
        self._promise(at)

    def _sweep(self, forward: Forward, now: float) -> None:
        try:
            forward.sweep(now)
        except Exception:  # else those behind it would have no deadlines
            _log.exception("the deadlines of an exchange could not be looked at")
            forward.end(replies.INTERNAL)


def _next(now: float, period_s: float) -> float:
    """The next whole period that is not the one of this moment."""
    return ((now + _SWEEP_S / 2) // period_s + 1) * period_s


def _nobody_waits(at: float) -> None:
    """Nobody hears the promise."""
