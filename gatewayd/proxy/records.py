"""What is written down of exchanges that have ended: counters, demand, access lines.

Owns: that a turn of the loop is recorded in one go. Does not own: the counters (observe), the
shared table (net.demand), the lines (accesslog).

Each of the three costs more to reach than to do: for the dozens of exchanges that end in one turn
of a busy loop, it is reached once.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict

from gatewayd.net.demand import DemandTable
from gatewayd.proxy.accesslog import AccessLog
from gatewayd.proxy.exchange import Exchange
from gatewayd.proxy.observe import Meters
from gatewayd.proxy.served import Served


class Records:
    """`put` when an exchange has ended and nothing of it changes any more; who reads the counters
    calls `flush` first."""

    __slots__ = ("_access_log", "_demand", "_ended", "_loop", "_meters")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        meters: Meters,
        demand: DemandTable,
        access_log: AccessLog,
    ) -> None:
        self._loop = loop
        self._meters = meters
        self._demand = demand
        self._access_log = access_log
        self._ended: list[Exchange] = []

    def __repr__(self) -> str:
        return f"<Records [{len(self._ended)}]>"

    def put(self, exchange: Exchange) -> None:
        ended = self._ended
        if not ended:
            self._loop.call_soon(self.flush)
        ended.append(exchange)

    def flush(self) -> None:
        ended = self._ended
        if not ended:
            return
        self._ended = []
        groups: defaultdict[tuple[Served | None, int], list[Exchange]] = defaultdict(list)
        for exchange in ended:
            groups[exchange.served, exchange.column].append(exchange)
        for (served, column), exchanges in groups.items():
            meter = self._meters.nobody if served is None else served.meter
            meter.record(exchanges)
            if column >= 0:
                self._demand.ended(
                    column,
                    len(exchanges),
                    began_ms=sum([exchange.demanded_ms for exchange in exchanges]),
                    ended_ms=sum([int(exchange.ended_at * 1000) for exchange in exchanges]),
                )
        self._access_log.write(ended)
