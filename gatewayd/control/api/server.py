"""The admin server: one application on the admin address, a smaller one on the metrics address.

Owns: assembling them, their sockets' service. Does not own: the sockets (control.sockets), the
calls.
"""

from __future__ import annotations

import socket
from typing import Protocol

from aiohttp import web

from gatewayd.control.api.guard import guard
from gatewayd.control.api.ops_calls import OpsCalls
from gatewayd.control.api.replies import BODY_MAX, answer_errors
from gatewayd.net.listeners import bound_address

_KEEPALIVE_S = 75.0
_LAST_ANSWERS_S = 1.0


class Calls(Protocol):
    """A group of paths that belong together."""

    def add_routes(self, app: web.Application) -> None: ...


class AdminServer:
    def __init__(self) -> None:
        self._runners: list[web.AppRunner] = []

    def __repr__(self) -> str:
        return f"<AdminServer {len(self._runners)} addresses>"

    async def serve(self, sock: socket.socket, *calls: Calls) -> None:
        app = web.Application(
            middlewares=[answer_errors, guard(bound_address(sock))], client_max_size=BODY_MAX
        )
        for group in calls:
            group.add_routes(app)
        await self._start(app, sock)

    async def serve_metrics(self, sock: socket.socket, ops: OpsCalls) -> None:
        """For a scraper, which may come from another machine: it can only read."""
        app = web.Application(middlewares=[answer_errors], client_max_size=BODY_MAX)
        ops.add_probe_routes(app)
        await self._start(app, sock)

    async def aclose(self) -> None:
        for runner in self._runners:
            await runner.cleanup()
        self._runners.clear()

    async def _start(self, app: web.Application, sock: socket.socket) -> None:
        runner = web.AppRunner(
            app,
            access_log=None,
            keepalive_timeout=_KEEPALIVE_S,
            shutdown_timeout=_LAST_ANSWERS_S,
        )
        await runner.setup()
        self._runners.append(runner)
        await web.SockSite(runner, sock).start()
