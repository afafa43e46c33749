"""How much a service was asked for lately: what scalers decide by.

Owns: cumulative counts of requests, their history, and what follows for the windows of the last
seconds. Does not own: which requests count (proxy.handler), the memory they are counted in
(net.demand), who is told (control.api.stats_calls).

Nothing but differences of cumulative counts is used, so it does not matter when they are looked
at, or from which number a count begins. Times are whole milliseconds of the monotonic clock.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

WINDOWS_S: Final = (30, 60, 300)
_KEPT_MS: Final = max(WINDOWS_S) * 1000
_TRIM_AFTER: Final = 64  # moments that are too old, before they are cut off together

Count = Literal["running", "finished", "started"]


class Demand(NamedTuple):
    """Requests of a service so far. `busy_ms` is how long the finished ones took together;
    `open_ms` the sum of the moments at which those that run began."""

    started: int = 0
    finished: int = 0
    busy_ms: int = 0
    open_ms: int = 0

    @property
    def running(self) -> int:
        return self.started - self.finished

    def plus(self, other: Demand) -> Demand:
        return Demand(
            self.started + other.started,
            self.finished + other.finished,
            self.busy_ms + other.busy_ms,
            self.open_ms + other.open_ms,
        )

    def minus(self, other: Demand) -> Demand:
        return Demand(
            self.started - other.started,
            self.finished - other.finished,
            self.busy_ms - other.busy_ms,
            self.open_ms - other.open_ms,
        )

    def ages_ms(self, now: int) -> int:
        """How old those that run are together. Never less than nothing, as it would seem when a
        process is looked at, or dies, between the two counts of one beginning or end."""
        return max(0, self.running * now - self.open_ms)

    def ended(self, now: int) -> Demand:
        """All that ran has ended, for instance because its process died."""
        return Demand(self.started, self.started, self.busy_ms + self.ages_ms(now), 0)


class Moment(NamedTuple):
    """What had been counted by then."""

    at: int
    started: int
    finished: int
    busy_ms: int


@dataclass(frozen=True, slots=True)
class Window:
    requests: int
    request_time: float  # mean seconds, to the millisecond


class History:
    """The moments at which counts were seen to have grown, as far back as the longest window."""

    __slots__ = ("_moments", "_times")

    def __init__(self, moments: Iterable[Moment]) -> None:
        """`moments` are in order, at least one: before the first nothing is known to have been."""
        self._moments = list(moments)
        self._times = [moment.at for moment in self._moments]

    def __repr__(self) -> str:
        return f"<History {len(self._moments)} moments>"

    def note(self, now: int, demand: Demand) -> None:
        seen = (demand.started, demand.finished, demand.busy_ms)
        if seen != self._moments[-1][1:]:
            self._moments.append(Moment(now, *seen))
            self._times.append(now)
        # One that is too old stays: the longest window begins with it.
        old = bisect_right(self._times, now - _KEPT_MS) - 1
        if old >= _TRIM_AFTER:
            del self._moments[:old]
            del self._times[:old]

    def by(self, then: int) -> Moment:
        """What had been counted at a moment."""
        return self._moments[max(0, bisect_right(self._times, then) - 1)]

    def idle(self, now: int) -> bool:
        """Whether every window is empty of what ended and began."""
        return self._times[-1] <= now - _KEPT_MS

    def moments(self, now: int) -> list[Moment]:
        """All that a window reaches, and the one before."""
        return self._moments[max(0, bisect_right(self._times, now - _KEPT_MS) - 1) :]


def thinned(moments: Sequence[Moment], step_ms: int) -> list[Moment]:
    """Enough to go on with elsewhere: the first, and the newest of each step."""
    steps = {moment.at // step_ms: moment for moment in moments}
    return [moments[0], *(moment for moment in steps.values() if moment is not moments[0])]


def window(history: History, demand: Demand, now: int, seconds: int, count: Count) -> Window:
    """`running`: requests that ran at some time of the window, each once, however long and
    however many windows it spans. `finished`: those that ended in it. `started`: that began."""
    before = history.by(now - seconds * 1000)
    ended = demand.finished - before.finished
    took_ms = demand.busy_ms - before.busy_ms
    if count == "started":
        return Window(demand.started - before.started, _mean_s(took_ms, ended))
    if count == "running":
        # What ran in the window has ended in it or runs now: nothing is counted twice.
        ended += demand.running
        took_ms += demand.ages_ms(now)
    return Window(ended, _mean_s(took_ms, ended))


def _mean_s(total_ms: int, requests: int) -> float:
    return round(total_ms / requests / 1000, 3) if requests > 0 else 0.0
