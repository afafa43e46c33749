"""What operators and their probes ask: health, status, metrics, reload.

Owns: paths and answers. Does not own: what they tell (control.status, control.metrics).
"""

from __future__ import annotations

from aiohttp import web

import gatewayd
from gatewayd.control.api.replies import reply
from gatewayd.control.metrics import CONTENT_TYPE, Exposition
from gatewayd.control.reload import NeedsRestartError, Reloader
from gatewayd.control.status import Status


class OpsCalls:
    def __init__(self, status: Status, exposition: Exposition, reloader: Reloader) -> None:
        self._status = status
        self._exposition = exposition
        self._reloader = reloader

    def add_probe_routes(self, app: web.Application) -> None:
        """What a separate metrics address serves."""
        app.router.add_get("/healthz", self.healthz)
        app.router.add_get("/readyz", self.readyz)
        app.router.add_get("/metrics", self.metrics)

    def add_routes(self, app: web.Application) -> None:
        self.add_probe_routes(app)
        app.router.add_get("/", self.version)
        app.router.add_get("/api/status", self.status)
        app.router.add_post("/api/reload", self.reload)

    async def version(self, request: web.Request) -> web.Response:
        return reply({"version": gatewayd.__version__})

    async def healthz(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(self, request: web.Request) -> web.Response:
        checks = await self._status.checks()
        ready = all(check.passed for check in checks)
        lines = ["ready" if ready else "not ready"]
        if "verbose" in request.query:
            lines[:0] = [
                f"[{'+' if check.passed else '-'}] {check.name}: {check.detail}" for check in checks
            ]
        return web.Response(text="\n".join(lines) + "\n", status=200 if ready else 503)

    async def metrics(self, request: web.Request) -> web.Response:
        text = await self._exposition.render()
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE})

    async def status(self, request: web.Request) -> web.Response:
        text = await self._status.as_json()
        return web.Response(body=text, content_type="application/json")

    async def reload(self, request: web.Request) -> web.Response:
        dry_run = request.query.get("dry_run", "0") not in ("0", "false")
        try:
            outcome = await self._reloader.reload(dry_run=dry_run)
        except NeedsRestartError as error:
            return reply({"detail": str(error), "refused": list(error.lines)}, 400)
        return reply({"status": "ok", "applied": outcome.applied, "changes": list(outcome.changes)})
