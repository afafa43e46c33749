"""Which bound an exchange has run into, seen from the sweep that looks at it.

Owns: the phases of an attempt and when each is over, how long nobody needs to look. Does not own:
the bounds (Timeouts), the looking (sweeper), what happens then (forward).
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from gatewayd.core.retry import Failure

if TYPE_CHECKING:
    from gatewayd.core.model import Timeouts
    from gatewayd.net.upstream import UpstreamConnection
    from gatewayd.proxy.exchange import Exchange


# Of the shortest bound. It may be noticed two rests late: one until progress is seen, and one more.
_REST_SHARE: Final = 0.05
_REST_S: Final = (1.0, 2.5)  # what is worth a rest, and the longest


class Late(enum.Enum):
    """The value is the failure's kind in the metrics; BODY is the client's own lateness."""

    BODY = "body"
    SEND = Failure.TIMEOUT_SEND.kind
    FIRST_BYTE = Failure.TIMEOUT_FIRST_BYTE.kind
    IDLE = Failure.TIMEOUT_IDLE.kind
    TOTAL = Failure.TIMEOUT_TOTAL.kind


class Deadlines:
    """Progress is read from counters that move anyway, so a byte costs no clock reading.

    Until the first body byte `first_byte` counts, headers or not: engines send their head at
    once and prefill for minutes. A body may pause for as long on either side: a client that sends
    none, a replica that takes none. A client that does not read stops the replica's clock.

    `rest_s` is how long nobody needs to look: thousands of streams are not to be walked over ten
    times a second for bounds of minutes.
    """

    __slots__ = (
        "_body_idle_s",
        "_connection",
        "_progress",
        "_progress_at",
        "_started_at",
        "_timeouts",
        "rest_s",
    )

    def __init__(
        self, timeouts: Timeouts, body_idle_s: float, *, started_at: float, now: float
    ) -> None:
        self._timeouts = timeouts
        self._body_idle_s = body_idle_s
        self._started_at = started_at
        self._progress_at = now
        self._progress = -1
        self._connection: UpstreamConnection | None = None
        bounds = (timeouts.first_byte, timeouts.idle, timeouts.total, body_idle_s)
        shortest, longest = _REST_S
        rest_s = min([bound for bound in bounds if bound is not None]) * _REST_SHARE
        self.rest_s = min(rest_s, longest) if rest_s >= shortest else 0.0

    def check(self, now: float, connection: UpstreamConnection, exchange: Exchange) -> Late | None:
        """`now` is loop time, the monotonic clock in seconds, as is `started_at`."""
        timeouts = self._timeouts
        if timeouts.total is not None and now - self._started_at > timeouts.total:
            return Late.TOTAL
        progress = connection.received + exchange.bytes_in
        stuck = connection.writing_paused and not connection.request_done
        if stuck:
            progress -= connection.untaken
        if progress != self._progress or connection is not self._connection:
            # Counted from when it was seen, which may be a sweep late, and never early.
            self._connection = connection
            self._progress = progress
            self._progress_at = now
        if connection.reading_paused:
            self._progress_at = now
            return None
        waited = now - self._progress_at
        if not connection.request_done and not stuck:
            return Late.BODY if waited > self._body_idle_s else None
        if connection.received:
            return Late.IDLE if timeouts.idle is not None and waited > timeouts.idle else None
        if timeouts.first_byte is not None and waited > timeouts.first_byte:
            return Late.FIRST_BYTE
        return Late.SEND if stuck and waited > self._body_idle_s else None
