"""One module per group of figures; `ALL` is what a full run measures, in this order."""

from __future__ import annotations

from benchmarks.figures import bulk, chain, lifecycle, memory, small, sse, tls
from benchmarks.report import Figure

ALL: tuple[Figure, ...] = (
    *small.FIGURES,
    *sse.FIGURES,
    *bulk.FIGURES,
    *memory.FIGURES,
    *tls.FIGURES,
    *chain.FIGURES,
    *lifecycle.FIGURES,
)
