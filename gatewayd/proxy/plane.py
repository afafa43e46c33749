"""What every exchange of one process shares: loop, pools, load counts, tasks, the sweeper.

Owns: connection pools by address, tasks of exchanges, the walk over deadlines.
Does not own: snapshots and admission (handler), what a timeout means (forward).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, Final

from gatewayd.core import reply as replies
from gatewayd.core.model import Address, Endpoint
from gatewayd.net.lane import Lane
from gatewayd.net.loads import LoadTable
from gatewayd.net.mux_pool import MuxPool
from gatewayd.net.outbox import Outbox
from gatewayd.net.pool import POOL_IDLE_S, Pool
from gatewayd.net.splice import Splices
from gatewayd.proxy.question import Asker

if TYPE_CHECKING:
    from gatewayd.proxy.exchange import Exchange
    from gatewayd.proxy.forward import Forward
    from gatewayd.proxy.server import EdgeServer

_log = logging.getLogger("gatewayd.proxy")

MUX_IDLE_S: Final = 30.0  # of a shared connection to a router, which keeps idle ones for longer
_SWEEP_S: Final = 0.1  # running exchanges, whose shortest deadlines are fractions of a second
_SLOW_EVERY: Final = 10  # connections and pools, in sweeps


class Plane:
    """`active` are the forwards that run now, for the sweeper and for draining."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, loads: LoadTable, asker: Asker | None = None
    ) -> None:
        self.loop = loop
        self.loads = loads
        self.outbox = Outbox(loop)
        self.lane = Lane(loop)
        self.splices = Splices(loop)
        self.asker = asker or Asker(loop, 0)
        self._changed = asyncio.Event()
        self.active: set[Forward] = set()
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
        self.date, self.date_line = _dates()  # made once a second
        self._sweeper: asyncio.Task[None] | None = None
        self._resting: asyncio.Future[None] | None = None  # the sweeper's, while nothing runs
        self._report: Callable[[], None] = _nothing

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

    def start(self, report: Callable[[], None] | None = None) -> None:
        """`report` is called in each slow round, once a second, so that an idle process wakes for
        both at once."""
        self._report = report or _nothing
        self._sweeper = self.loop.create_task(self._sweep())

    async def aclose(self) -> None:
        tasks = [*self._tasks, *([self._sweeper] if self._sweeper else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for mux_pool in self._mux_pools.values():
            mux_pool.close()
        self.keep_pools(set())
        self.lane.close()

    def begin(self, forward: Forward) -> None:
        """It runs from now on, and has deadlines."""
        self.active.add(forward)
        if self._resting is not None:
            _wake(self._resting)

    async def _rest(self) -> None:
        """Nothing runs: the sweeper waits for what is next, an exchange or its slow round."""
        resting = self._resting = self.loop.create_future()
        timer = self.loop.call_later(_SWEEP_S * _SLOW_EVERY, _wake, resting)
        try:
            await resting
        finally:
            timer.cancel()
            self._resting = None

    async def _sweep(self) -> None:
        """One task walks all deadlines: a timer per exchange would cost 5 µs each."""
        loop = self.loop
        slow_at = loop.time()
        while True:
            await (asyncio.sleep(_SWEEP_S) if self.active else self._rest())
            now = loop.time()
            try:
                for forward in list(self.active):
                    if forward.sweep_at <= now:
                        self._sweep_one(forward, now)
                if now - slow_at >= _SWEEP_S * (_SLOW_EVERY - 0.5):
                    slow_at = now
                    self.date, self.date_line = _dates()
                    self._report()
                    for server in self.servers:
                        for connection in server.each():
                            connection.sweep(now)
                    for pool in list(self._pools.values()):
                        pool.close_idle(now - pool.idle_s)
                    for mux_pool in list(self._mux_pools.values()):
                        mux_pool.close_idle(now - MUX_IDLE_S)
            except Exception:
                _log.exception("the sweeper met what it did not expect; it goes on")

    def _sweep_one(self, forward: Forward, now: float) -> None:
        try:
            forward.sweep(now)
        except Exception:  # else those behind it would have no deadlines
            _log.exception("the deadlines of an exchange could not be looked at")
            forward.end(replies.INTERNAL)


def _dates() -> tuple[bytes, bytes]:
    """The Date field's value (RFC 9110, 6.6.1), and its line behind another's end."""
    date = formatdate(usegmt=True).encode()
    return date, b"\r\nDate: %b\r\n" % date


def _wake(resting: asyncio.Future[None]) -> None:
    if not resting.done():
        resting.set_result(None)


def _nothing() -> None:
    """Nobody waits for news between reports."""
