"""What is written down of exchanges that have ended: counters, demand, access lines.

Owns: that a turn of the loop is recorded in one go. Does not own: the counters (observe), the
shared table (net.demand), the lines (accesslog).

Each of the three costs more to reach than to do: for the dozens of exchanges that end in one turn
of a busy loop, it is reached once.
"""

from __future__ import annotations

import asyncio

from gatewayd.net.demand import DemandTable
from gatewayd.proxy.accesslog import AccessLog
from gatewayd.proxy.exchange import Exchange
from gatewayd.proxy.observe import Meter, Meters


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
        by_meter: dict[Meter, list[Exchange]] = {}
        columns: dict[int, list[tuple[int, int]]] = {}
        for exchange in ended:
            served = exchange.served
            meter = self._meters.nobody if served is None else served.meter
            if meter in by_meter:
                by_meter[meter].append(exchange)
            else:
                by_meter[meter] = [exchange]
            if began_ms := exchange.demanded_ms:
                times = began_ms, int(exchange.ended_at * 1000)
                if exchange.column in columns:
                    columns[exchange.column].append(times)
                else:
                    columns[exchange.column] = [times]
        for meter, exchanges in by_meter.items():
            meter.record(exchanges)
        for column, spans in columns.items():
            self._demand.ended(column, spans)
        self._access_log.write(ended)
