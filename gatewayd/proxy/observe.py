"""Counting: one record per exchange, into the totals that are reported to control.

Owns: counters and histograms of this process. Does not own: their export (control.telemetry),
log lines (accesslog).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping

from gatewayd.core.messages import ServiceTotals
from gatewayd.core.stats import DURATION_BOUNDS, TTFB_BOUNDS
from gatewayd.proxy.exchange import Exchange


class Meter:
    """Cumulative counts of one service in this process."""

    __slots__ = ("changed", "totals")

    def __init__(self) -> None:
        self.totals = ServiceTotals(
            duration_buckets=[0] * (len(DURATION_BOUNDS) + 1),
            ttfb_buckets=[0] * (len(TTFB_BOUNDS) + 1),
        )
        self.changed = False

    def record(self, ended: Iterable[Exchange]) -> None:
        """Count finished exchanges."""
        totals = self.totals
        codes, ways = totals.codes, totals.ways
        durations, ttfbs = totals.duration_buckets, totals.ttfb_buckets
        duration_sum = ttfb_sum = 0.0
        bytes_in = bytes_out = 0
        for exchange in ended:
            status, via, started = exchange.status, exchange.via, exchange.started_at
            codes[status] = codes.get(status, 0) + 1
            ways[via] = ways.get(via, 0) + 1
            duration_sum += (seconds := exchange.ended_at - started)
            durations[bisect_left(DURATION_BOUNDS, seconds)] += 1
            if exchange.first_byte_at:
                ttfb_sum += (seconds := exchange.first_byte_at - started)
                ttfbs[bisect_left(TTFB_BOUNDS, seconds)] += 1
            bytes_in += exchange.bytes_in
            bytes_out += exchange.bytes_out
        totals.duration_sum += duration_sum
        totals.ttfb_sum += ttfb_sum
        totals.bytes_in += bytes_in
        totals.bytes_out += bytes_out
        self.changed = True

    def rejected(self, reason: str) -> None:
        rejections = self.totals.rejections
        rejections[reason] = rejections.get(reason, 0) + 1
        self.changed = True

    def auth_stale(self) -> None:
        self.totals.auth_stale += 1
        self.changed = True

    def upstream_error(self, replica: str, kind: str) -> None:
        errors = self.totals.upstream_errors
        errors[replica, kind] = errors.get((replica, kind), 0) + 1
        self.changed = True

    def log_lines_dropped(self, total: int) -> None:
        if total != self.totals.log_lines_dropped:
            self.totals.log_lines_dropped = total
            self.changed = True

    def handshakes_held(self, totals: Mapping[str, int]) -> None:
        if totals != self.totals.handshakes_held:
            self.totals.handshakes_held = dict(totals)
            self.changed = True

    def retried(self) -> None:
        self.totals.retries += 1
        self.changed = True

    def steering(self, outcome: str) -> None:
        outcomes = self.totals.steering
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        self.changed = True


class Meters:
    """The meters of a process, by `Service.key`; "" counts what belongs to no service."""

    def __init__(self) -> None:
        self._meters: dict[str, Meter] = {}
        self.nobody = self.of("")

    def of(self, key: str) -> Meter:
        meter = self._meters.get(key)
        if meter is None:
            meter = self._meters[key] = Meter()
        return meter

    def keep(self, keys: set[str]) -> None:
        """Forget services that are gone; what still runs for them counts into the void."""
        for key in [k for k in self._meters if k and k not in keys]:
            del self._meters[key]

    def take_changed(self) -> dict[str, ServiceTotals]:
        """Totals of the meters that changed since the last call."""
        changed = {}
        for key, meter in self._meters.items():
            if meter.changed:
                meter.changed = False
                changed[key] = meter.totals
        return changed
