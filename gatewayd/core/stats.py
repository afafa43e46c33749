"""Buckets of the histograms and the arithmetic of counters that come from many processes.

Owns: bounds; merging of cumulative `ServiceTotals`. Does not own: who counts (proxy.observe),
who exports (control.telemetry).
"""

from __future__ import annotations

from typing import Final, TypeVar

from gatewayd.core.messages import ServiceTotals

_Label = TypeVar("_Label")

# To the last byte: an embedding takes milliseconds, a long generation an hour.
DURATION_BOUNDS: Final = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
    600.0, 1800.0, 3600.0,
)  # fmt: skip

# To the first byte: 5 ms (a cached prefix) to 10 min (a long prefill in a queue).
TTFB_BOUNDS: Final = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 20.0,
    30.0, 60.0, 120.0, 300.0, 600.0,
)  # fmt: skip


def add_totals(total: ServiceTotals, part: ServiceTotals) -> None:
    """Add `part` to `total`, in place; an empty histogram counts as zeros."""
    _add_counts(total.codes, part.codes)
    _add_buckets(total.duration_buckets, part.duration_buckets)
    total.duration_sum += part.duration_sum
    _add_buckets(total.ttfb_buckets, part.ttfb_buckets)
    total.ttfb_sum += part.ttfb_sum
    total.bytes_in += part.bytes_in
    total.bytes_out += part.bytes_out
    _add_counts(total.rejections, part.rejections)
    _add_counts(total.upstream_errors, part.upstream_errors)
    total.retries += part.retries
    _add_counts(total.ways, part.ways)
    _add_counts(total.steering, part.steering)
    total.auth_stale += part.auth_stale
    total.log_lines_dropped += part.log_lines_dropped
    _add_counts(total.handshakes_held, part.handshakes_held)


def _add_counts(total: dict[_Label, int], part: dict[_Label, int]) -> None:
    for label, count in part.items():
        total[label] = total.get(label, 0) + count


def _add_buckets(total: list[int], part: list[int]) -> None:
    total.extend([0] * (len(part) - len(total)))
    for index, count in enumerate(part):
        total[index] += count
