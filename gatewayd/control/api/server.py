"""The admin server: one application on the admin address, a smaller one on the metrics address.

Owns: assembling them, their sockets' service, pausing it. Does not own: the sockets
(control.sockets), which stay open when this closes; the calls.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol

from aiohttp import web

from gatewayd.control.api.guard import guard
from gatewayd.control.api.ops_calls import OpsCalls
from gatewayd.control.api.replies import BODY_MAX, answer_errors
from gatewayd.net.listeners import bound_address

_log = logging.getLogger(__name__)

_KEEPALIVE_S = 75.0
_LAST_ANSWERS_S = 1.0


class Calls(Protocol):
    """A group of paths that belong together."""

    def add_routes(self, app: web.Application) -> None: ...


Make = Callable[[], web.Application]


class AdminServer:
    def __init__(self) -> None:
        self._served: list[tuple[Make, socket.socket]] = []
        self._runners: list[web.AppRunner] = []
        self._running = 0
        self._changes = 0  # of those: what a control plane asks, and takes a cut for a refusal
        self._ended = asyncio.Event()

    def __repr__(self) -> str:
        return f"<AdminServer {len(self._runners)} addresses, {self._running} calls run>"

    async def serve(self, sock: socket.socket, *calls: Calls) -> None:
        def make() -> web.Application:
            app = web.Application(
                middlewares=[self._counted, answer_errors, guard(bound_address(sock))],
                client_max_size=BODY_MAX,
            )
            for group in calls:
                group.add_routes(app)
            return app

        await self._start(make, sock)

    async def serve_metrics(self, sock: socket.socket, ops: OpsCalls) -> None:
        """For a scraper, which may come from another machine: it can only read."""

        def make() -> web.Application:
            app = web.Application(
                middlewares=[self._counted, answer_errors], client_max_size=BODY_MAX
            )
            ops.add_probe_routes(app)
            return app

        await self._start(make, sock)

    async def aclose(self) -> None:
        for runner in self._runners:
            await runner.cleanup()
        self._runners.clear()

    @property
    def paused(self) -> bool:
        return bool(self._served) and not self._runners

    async def changes_end(self, timeout: float) -> None:
        """Returns when no change is being made, or after `timeout`. Waiting for a replica to drain
        is none."""
        if self._changes:
            _log.info("%d calls of the admin address are answered first", self._changes)
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self._changes:
                    self._ended.clear()
                    await self._ended.wait()

    async def pause(self, timeout: float, *, changes: float) -> None:
        """Accept nothing more: calls wait in the sockets' queues. What runs is answered, changes
        within `changes` seconds and the rest within `timeout` more."""
        for runner in self._runners:
            for site in list(runner.sites):
                await site.stop()
        await self.changes_end(changes)
        try:
            async with asyncio.timeout(timeout):
                while self._running:
                    self._ended.clear()
                    await self._ended.wait()
        except TimeoutError:
            _log.warning("%d calls of the admin address did not end and are cut", self._running)
        await self.aclose()

    async def resume(self) -> None:
        served, self._served = self._served, []
        for make, sock in served:
            await self._start(make, sock)

    async def _start(self, make: Make, sock: socket.socket) -> None:
        runner = web.AppRunner(
            make(),
            access_log=None,
            keepalive_timeout=_KEEPALIVE_S,
            shutdown_timeout=_LAST_ANSWERS_S,
        )
        await runner.setup()
        self._served.append((make, sock))
        self._runners.append(runner)
        await web.SockSite(runner, sock.dup()).start()  # it closes what it is given

    @web.middleware
    async def _counted(
        self,
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        change = request.method == "POST" and not request.path.endswith("/drain")
        self._running += 1
        self._changes += change
        try:
            return await handler(request)
        finally:
            self._running -= 1
            self._changes -= change
            self._ended.set()
