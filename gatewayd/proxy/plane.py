"""What every exchange of one process shares: loop, pools, load counts, tasks, the sweeper.

Owns: connection pools by address, tasks of exchanges, what is done once a second.
Does not own: snapshots and admission (handler), what runs and its deadlines (sweeper).
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Coroutine
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, Final

from gatewayd.core.model import Address, Endpoint
from gatewayd.net.lane import Lane
from gatewayd.net.loads import LoadTable
from gatewayd.net.mux_pool import MuxPool
from gatewayd.net.outbox import Outbox
from gatewayd.net.pool import POOL_IDLE_S, Pool
from gatewayd.net.splice import Splices
from gatewayd.proxy.question import Asker
from gatewayd.proxy.sweeper import Open, Sweeper

if TYPE_CHECKING:
    from gatewayd.proxy.exchange import Exchange
    from gatewayd.proxy.server import EdgeServer

_log = logging.getLogger("gatewayd.proxy")

MUX_IDLE_S: Final = 30.0  # of a shared connection to a router, which keeps idle ones for longer


class Plane:
    """`date` and `date_line` are those of this second."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, loads: LoadTable, asker: Asker | None = None
    ) -> None:
        self.loop = loop
        self.loads = loads
        self.outbox = Outbox(loop)
        self.lane = Lane(loop)
        self.splices = Splices(loop)
        self.asker = asker or Asker(loop, 0)
        self.sweeper = Sweeper(loop, self._each_second)
        self._changed = asyncio.Event()
        self.servers: list[EdgeServer] = []
        self.chance = random.Random()  # noqa: S311  (spreads ties, guards nothing)
        self.body_idle_timeout = 60.0
        # For the next report: endpoints that refused; names without a certificate, with a client.
        self.unreachable: set[str] = set()
        self.sighted: set[str] = set()
        self.on_news: Callable[[], None] = _nothing  # control is to hear of it at once
        self._pools: dict[Address, Pool] = {}
        self._mux_pools: dict[Address, MuxPool] = {}  # of routers that are asked
        self._tasks: dict[asyncio.Task[None], Exchange | None] = {}
        self._minute = 0, b""
        self._tell_time()

    def pool(self, endpoint: Endpoint) -> Pool:
        pool = self._pools.get(endpoint.address)
        if pool is None:
            idle_s = max(POOL_IDLE_S, endpoint.reuse_s)
            pool = self._pools[endpoint.address] = Pool(
                endpoint.address, self.loop, self.outbox, idle_s=idle_s
            )
        return pool

    def mux_pool(self, endpoint: Endpoint) -> MuxPool:
        pool = self._mux_pools.get(endpoint.address)
        if pool is None:
            pool = self._mux_pools[endpoint.address] = MuxPool(endpoint.address, self.loop)
        return pool

    def keep_pools(self, addresses: set[Address]) -> None:
        """Close the idle connections of addresses that are no longer dialled."""
        for address in [a for a in self._mux_pools if a not in addresses]:
            self._mux_pools.pop(address).retire()
        for address in [a for a in self._pools if a not in addresses]:
            self._pools.pop(address).close()

    def snapshot_changed(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self, timeout_s: float) -> None:
        """Returns when the next snapshot is applied, or after the time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            pass

    def refused(self, service_key: str, replica: str) -> None:
        """An endpoint refused a connection: control hears of it at once, and once a report."""
        name = f"{service_key}|{replica}"
        if name not in self.unreachable:
            self.unreachable.add(name)
            self.on_news()

    def sight(self, name: str) -> None:
        """A client came for a name that lacks its certificate."""
        self.sighted.add(name)
        self.on_news()

    def spawn(
        self, work: Coroutine[Any, Any, None], exchange: Exchange | None = None
    ) -> asyncio.Task[None]:
        """The plane owns the task. What it did not expect is logged and ends the exchange, if that
        would wait for it in vain."""
        task = self.loop.create_task(work)
        self._tasks[task] = exchange
        task.add_done_callback(self._reap)
        return task

    def _reap(self, task: asyncio.Task[None]) -> None:
        exchange = self._tasks.pop(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a task of an exchange failed", exc_info=error)
            if exchange is not None:
                exchange.failed()

    def start(
        self,
        report: Callable[[], None] | None = None,
        promise: Callable[[float], None] | None = None,
    ) -> None:
        """`report` is called once a second while clients are connected, `promise` with the seconds
        within which something will have been done again."""
        self.sweeper.start(report, promise)

    async def aclose(self) -> None:
        self.sweeper.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for mux_pool in self._mux_pools.values():
            mux_pool.close()
        self.keep_pools(set())
        self.lane.close()

    @property
    def running(self) -> int:
        """Exchanges that forward, and what others wait for."""
        return self.sweeper.running + len(self._tasks)

    def _each_second(self, now: float) -> Open:
        self._tell_time()
        clients = leftovers = False
        for server in self.servers:
            for connection in list(server.watched):
                connection.sweep(now)
            clients = clients or server.count > 0
        for pool in self._pools.values():
            pool.close_idle(now - pool.idle_s)
            leftovers = leftovers or pool.has_idle
        for mux_pool in self._mux_pools.values():
            mux_pool.close_idle(now - MUX_IDLE_S)
            leftovers = leftovers or mux_pool.is_open
        if clients or self._tasks:
            return Open.CLIENTS
        return Open.LEFTOVERS if leftovers else Open.NOTHING

    def _tell_time(self) -> None:
        """The Date field's value (RFC 9110, 6.6.1), and its line behind another's end."""
        now = int(time.time())
        second = now % 60
        if self._minute[0] != now - second:
            self._minute = now - second, formatdate(now, usegmt=True)[:-6].encode()
        self.date = b"%b%02d GMT" % (self._minute[1], second)
        self.date_line = b"\r\nDate: %b\r\n" % self.date


def _nothing() -> None:
    """Nobody waits for news between reports."""
