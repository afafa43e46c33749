"""What a control plane scales by: the demand of every service in the last seconds.

Owns: the shape of the answer. Does not own: counting and windows (control.demands, core.demand).
"""

from __future__ import annotations

from aiohttp import web

from gatewayd.control.api.replies import reply
from gatewayd.control.demands import Demands
from gatewayd.control.reload import Reloader
from gatewayd.control.state import State


class StatsCalls:
    def __init__(self, demands: Demands, state: State, reloader: Reloader) -> None:
        self._demands = demands
        self._state = state
        self._reloader = reloader

    def add_routes(self, app: web.Application) -> None:
        app.router.add_get("/api/stats/collect", self.collect)

    async def collect(self, request: web.Request) -> web.Response:
        """How much each service was asked for in the last 30, 60 and 300 seconds."""
        services = self._state.services
        count = self._reloader.config.stats_count
        windows = self._demands.windows(services.values(), count)
        return reply(
            [
                {
                    "project_name": service.project,
                    "run_name": service.name,
                    "stats": {
                        str(seconds): {
                            "requests": window.requests,
                            "request_time": window.request_time,
                        }
                        for seconds, window in windows[key].items()
                    },
                }
                for key, service in services.items()
            ]
        )
