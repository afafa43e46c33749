"""When a process looks at what has deadlines: ten times a second while it serves, once a second
while clients are connected, and else in four.

Owns: the exchanges that run, the clock of rounds, the promise of the next one, which is the
heartbeat. Does not own: what a deadline means (forward), what is done every second (plane).

An idle process pays for each page of memory that it touches when it wakes, so this is one timer
that calls functions: a task would touch twice as much. And the rounds come at whole seconds of the
clock that all processes share, so that control is woken by the reports of all of them at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from gatewayd.core import reply as replies

if TYPE_CHECKING:
    from gatewayd.proxy.forward import Forward

_log = logging.getLogger("gatewayd.proxy")

_SWEEP_S: Final = 0.1  # running exchanges, whose shortest deadlines are fractions of a second
_SLOW_S: Final = 1.0  # everything else of clients
_REST_S: Final = 4.0  # without any
_LATE_S: Final = 0.5  # from then on control looks whether we live


class Open(Enum):
    """What there is to look at in the next slow round."""

    NOTHING = auto()
    LEFTOVERS = auto()  # connections to others that grow old, which need not be looked at so often
    CLIENTS = auto()  # or what they have begun


class Sweeper:
    """`active` are the forwards that are looked at in each round: those that have just begun, or
    have a short deadline. While `resting`, there are no clients.

    `slow` is what is done once a second, and in a rest as long as there is something to look at: it
    is given the loop's time. `report` is called behind it, but for the round that a client causes.
    `promise` is told within how many seconds the next slow round will have come.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, slow: Callable[[float], Open]) -> None:
        self.active: set[Forward] = set()
        self._later: dict[int, set[Forward]] = {}  # by `sweep_at`, a second of the loop's time
        self.resting = False
        self._loop = loop
        self._slow = slow
        self._report: Callable[[], None] = _nobody_reads
        self._promise: Callable[[float], None] = _nobody_waits
        self._open = Open.CLIENTS  # at the last slow round
        self._slow_at = 0.0
        self._slowly = False  # no round comes before that
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Sweeper of {self.running} exchanges>"

    @property
    def running(self) -> int:
        return len(self.active) + sum([len(forwards) for forwards in self._later.values()])

    def start(
        self,
        report: Callable[[], None] | None = None,
        promise: Callable[[float], None] | None = None,
    ) -> None:
        self._report = report or self._report
        self._promise = promise or self._promise
        self._slow_next(self._loop.time())

    def close(self) -> None:
        """No round comes any more, whatever still begins."""
        self.resting = self._slowly = False
        if self._timer is not None:
            self._timer.cancel()

    def stir(self) -> None:
        """To be called while `resting` when a client has come, as soon as `slow` sees it."""
        self.close()
        now = self._loop.time()
        self._look(now)
        self._slow_next(now)

    def begin(self, forward: Forward) -> None:
        """It runs from now on, and has deadlines."""
        self.active.add(forward)
        if self._slowly:
            self.close()
            self._wait(self._loop.time())

    def forget(self, forward: Forward) -> None:
        """To be called when one with a `sweep_at` ends."""
        if (others := self._later.get(forward.sweep_at)) is not None:
            others.discard(forward)
        forward.sweep_at = 0

    def _wait(self, now: float) -> None:
        self._slowly = not self.active
        at = self._slow_at if self._slowly else _next(now, _SWEEP_S)
        self._timer = self._loop.call_at(at, self._round)

    def _slow_next(self, now: float) -> None:
        self._slow_at = _next(now, _SLOW_S)
        self._wait(now)
        self._promise(_SLOW_S + _LATE_S)

    def _round(self) -> None:
        now = self._loop.time()
        self._slowly = False  # what begins meanwhile finds a round under way
        for forward in list(self.active):
            self._sweep(forward, now)
        if now < self._slow_at - _SWEEP_S / 2:  # timers are as exact as a millisecond
            self._wait(now)
            return
        for forward in self._due(now):
            if forward in self.active:  # the look at another one has not ended it
                self._sweep(forward, now)
        quiet = self.resting
        self._look(now)
        self._tell()
        self.resting = self._open is not Open.CLIENTS
        if self.resting:
            # What ends a moment after its connection is told by one more round of this kind.
            done = quiet and self._open is Open.NOTHING
            self._timer = self._loop.call_later(_REST_S, self._rest if done else self._round)
            self._promise(_REST_S + _LATE_S)
        else:
            self._slow_next(now)

    def _rest(self) -> None:
        """A round in which there is nothing to look at. It touches as little as it can."""
        self._timer = self._loop.call_later(_REST_S, self._rest)
        self._promise(_REST_S + _LATE_S)

    def _due(self, now: float) -> list[Forward]:
        """Those whose second has come are among the active again."""
        due: list[Forward] = []
        for second in [second for second in self._later if second < now + _SWEEP_S]:
            due += self._later.pop(second)
        for forward in due:
            forward.sweep_at = 0
        self.active.update(due)
        return due

    def _look(self, now: float) -> None:
        try:
            found = self._slow(now)
            self._open = Open.CLIENTS if self.active or self._later else found
        except Exception:
            _log.exception("what is done every second failed; it is done again in the next")
            self._open = Open.CLIENTS  # there may be some

    def _tell(self) -> None:
        try:
            self._report()
        except Exception:
            _log.exception("nothing was reported; the next report tells it too")

    def _sweep(self, forward: Forward, now: float) -> None:
        try:
            again = forward.sweep(now)
        except Exception:  # else those behind it would have no deadlines
            _log.exception("the deadlines of an exchange could not be looked at")
            self._end(forward)
            return
        if again >= now + _SLOW_S and forward in self.active:
            self.active.discard(forward)
            forward.sweep_at = second = int(again)  # later than this round by then
            self._later.setdefault(second, set()).add(forward)

    def _end(self, forward: Forward) -> None:
        try:
            forward.end(replies.INTERNAL)
        except Exception:
            _log.exception("and it could not be ended: nobody looks at it any more")
            self.active.discard(forward)


def _next(now: float, period_s: float) -> float:
    """The next whole period that is not the one of this moment."""
    return ((now + _SWEEP_S / 2) // period_s + 1) * period_s


def _nobody_reads() -> None:
    """Nobody reads reports."""


def _nobody_waits(within_s: float) -> None:
    """Nobody hears the promise."""
