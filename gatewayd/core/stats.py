"""Buckets of the histograms and the arithmetic of counters that come from many processes.

Owns: bounds; merging of cumulative `ServiceTotals`. Does not own: who counts (proxy.observe),
who exports (control.telemetry).
"""

from __future__ import annotations

from typing import Final

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
