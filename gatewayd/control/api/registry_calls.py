"""Registry calls: services and replicas come and go.

Owns: paths, and bodies to calls of the registry. Does not own: shapes (schemas), texts of refusals
(control.registry). Project and run names are lower-cased, replica ids are not.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Final

from aiohttp import web
from pydantic import BaseModel

from gatewayd.control.api.model_bodies import Body, EntrypointBody
from gatewayd.control.api.replica_bodies import RegisterReplicaBody, to_replica
from gatewayd.control.api.replies import ok, read_body, reply, validate
from gatewayd.control.api.schemas import (
    ConfigBody,
    ProjectName,
    RegisterServiceBody,
    SetIdBody,
    WithdrawBody,
    to_service,
)
from gatewayd.control.conflicts import RefusedError
from gatewayd.control.limit_check import idle_limits_of
from gatewayd.control.registry import DRAIN_TIMEOUT_S, Registry
from gatewayd.control.reload import Reloader
from gatewayd.control.state import State
from gatewayd.core.model import RouterSpec
from gatewayd.core.secret import Secret

_log = logging.getLogger(__name__)

CheckRouter = Callable[[RouterSpec], list[str]]

_SERVICES = "/api/registry/{project}/services"
_REPLICAS = _SERVICES + "/{run}/replicas"

_DRAIN = f"{_REPLICAS}/{{id}}/drain"
_WITHDRAW = f"{_REPLICAS}/{{id}}/unregister"
_ENTRYPOINTS = "/api/registry/{project}/entrypoints"

BODIES: Final[Mapping[str, type[BaseModel]]] = {
    "/api/config": ConfigBody,
    f"{_SERVICES}/register": RegisterServiceBody,
    f"{_SERVICES}/{{run}}/set_id": SetIdBody,
    f"{_ENTRYPOINTS}/register": EntrypointBody,
    f"{_REPLICAS}/register": RegisterReplicaBody,
    _WITHDRAW: WithdrawBody,
    _DRAIN: WithdrawBody,
}


class RegistryCalls:
    def __init__(
        self,
        registry: Registry,
        state: State,
        reloader: Reloader,
        check_router: CheckRouter,
    ) -> None:
        self._registry = registry
        self._state = state
        self._reloader = reloader
        self._check_router = check_router

    def add_routes(self, app: web.Application) -> None:
        app.router.add_get("/api/services/list", self.list_services)
        app.router.add_post(f"{_SERVICES}/register", self.register_service)
        app.router.add_post(f"{_SERVICES}/{{run}}/unregister", self.unregister_service)
        app.router.add_post(f"{_ENTRYPOINTS}/register", self.register_entrypoint)
        app.router.add_post("/api/config", self.configure)
        app.router.add_post(f"{_SERVICES}/{{run}}/set_id", self.set_id)
        app.router.add_post(f"{_REPLICAS}/register", self.register_replica)
        app.router.add_post(_WITHDRAW, self.unregister_replica)
        app.router.add_post(_DRAIN, self.drain_replica)

    async def list_services(self, request: web.Request) -> web.Response:
        """Only what came through the registry: its server removes whatever it does not know."""
        return reply(
            {
                "services": [
                    {
                        "id": service.id,
                        "project_name": service.project,
                        "run_name": service.name,
                        "replicas": [{"id": replica.id} for replica in service.replicas],
                    }
                    for service in self._state.services.values()
                    if service.origin == "api"
                ]
            }
        )

    async def register_service(self, request: web.Request) -> web.Response:
        body = await read_body(request, RegisterServiceBody)
        service = to_service(_new_project(request), body, self._reloader.config)
        if service.router is not None:
            # In a thread: the plug-in may have to run the router's program.
            faults = await asyncio.to_thread(self._check_router, service.router)
            if faults:
                raise RefusedError("router: " + "; ".join(faults))
        key = Secret(body.ssh_private_key) if body.ssh_private_key else None
        await self._registry.add_service(service, key)
        for line in idle_limits_of([service]):
            _log.warning("%s", line)
        return ok()

    async def unregister_service(self, request: web.Request) -> web.Response:
        await self._registry.remove_service(_key(request))
        return ok()

    async def set_id(self, request: web.Request) -> web.Response:
        """Only while there is none."""
        body = await read_body(request, SetIdBody)
        await self._registry.set_id(_key(request), body.id)
        return ok()

    async def configure(self, request: web.Request) -> web.Response:
        """Where certificates come from."""
        body = await read_body(request, ConfigBody)
        await self._registry.set_acme(body.meaning())
        return ok()

    async def register_entrypoint(self, request: web.Request) -> web.Response:
        body = await read_body(request, EntrypointBody)
        await self._registry.add_entrypoint(body.meaning(_new_project(request)))
        return ok()

    async def register_replica(self, request: web.Request) -> web.Response:
        """Tells the id, which draining needs; a caller with a `job_id` knows it."""
        body = await read_body(request, RegisterReplicaBody)
        service = self._state.services.get(_key(request))
        router = None if service is None else service.router
        replica = to_replica(
            body,
            self._state.keys.get(_project(request)),
            by_internal_ip=router is not None and router.pd_disaggregation,
        )
        await self._registry.add_replica(_key(request), replica)
        return ok() if body.job_id is not None else ok(id=replica.id)

    async def unregister_replica(self, request: web.Request) -> web.Response:
        body = await _withdraw_body(request)
        if body.drain:
            return await self._drain(request, body)
        await self._registry.remove_replica(_key(request), request.match_info["id"])
        return ok()

    async def drain_replica(self, request: web.Request) -> web.Response:
        return await self._drain(request, await _withdraw_body(request))

    async def _drain(self, request: web.Request, body: WithdrawBody) -> web.Response:
        timeout = DRAIN_TIMEOUT_S if body.timeout is None else body.timeout
        drained = await self._registry.drain_replica(
            _key(request), request.match_info["id"], timeout
        )
        return ok(drained=drained.running == 0, running=drained.running)


async def _withdraw_body(request: web.Request) -> WithdrawBody:
    if request.query:
        return validate(dict(request.query), WithdrawBody, "query")
    return await read_body(request, WithdrawBody)


class _Path(Body):
    """What a new service is called by: paths of the file system are made of it."""

    project: ProjectName


def _new_project(request: web.Request) -> str:
    return validate({"project": _project(request)}, _Path, "path").project


def _project(request: web.Request) -> str:
    return request.match_info["project"].lower()


def _key(request: web.Request) -> str:
    return f"{_project(request)}/{request.match_info['run'].lower()}"
