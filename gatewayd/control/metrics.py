"""/metrics, without keeping control from anything else.

Owns: when lines are made, what the client library knows of this process. Does not own: names,
labels, lines (control.exposition), the values (control.status).

Lines are made on control's loop, in slices (control.turn).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, generate_latest

from gatewayd.control.exposition import add_gateway, add_service, no_lines
from gatewayd.control.sample import Sample
from gatewayd.control.turn import Turn

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class Exposition:
    """Renders at most one text at a time, however many ask."""

    def __init__(self, take_sample: Callable[[], Sample]) -> None:
        self._take_sample = take_sample
        self._process = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._process)
        GCCollector(registry=self._process)
        self._lock = asyncio.Lock()

    async def render(self) -> bytes:
        async with self._lock:
            turn = Turn()
            lines = no_lines()
            sample = self._take_sample()
            add_gateway(lines, sample)
            for service in sample.services:
                add_service(lines, service)
                await turn.over()
            texts = []
            for family, own in lines.items():
                texts.append((family.head + "".join(own)).encode())
                await turn.over()
            return b"".join([*texts, generate_latest(self._process)])
