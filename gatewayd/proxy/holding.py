"""Requests for a service that is coming up: they wait for its first replica, for a bounded time.

Owns: that waiting. Does not own: who is coming (control), what follows (forward).

After a start the tunnels of a service take seconds to open, and its clients were there before.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gatewayd.core.reply import NO_REPLICA
from gatewayd.proxy.waiting import Waiting

if TYPE_CHECKING:
    from gatewayd.proxy.exchange import Exchange
    from gatewayd.proxy.handler import Edge
    from gatewayd.proxy.served import Served


async def arrived(edge: Edge, served: Served) -> Served | None:
    """The service as soon as it has a replica; None when none comes, or none is coming any more."""
    try:
        async with asyncio.timeout(edge.limits.replica_wait):
            while served.coming:
                await edge.changed.wait()
                if served.live.served is None:
                    return None  # it has been unregistered
                served = served.now
    except TimeoutError:
        return None
    return served if served.unready is None else None


class Holding(Waiting):
    def __init__(self, edge: Edge, exchange: Exchange, served: Served) -> None:
        super().__init__(edge.plane, exchange)
        self._edge = edge
        self._served = served

    def start(self) -> None:
        self._wait(self._hold())

    async def _hold(self) -> None:
        served = await arrived(self._edge, self._served)
        exchange = self._exchange
        exchange.running = None
        if served is None:
            self._served.meter.rejected(NO_REPLICA.rejection)
            exchange.answer(NO_REPLICA)
        else:
            exchange.served = served
            self._edge.dispatch(exchange, served)
