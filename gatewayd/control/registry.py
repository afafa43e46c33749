"""Services and replicas as they are changed at run time: the only writer of State.

Owns: what may be changed by whom, the order of a change, draining. Does not own: the words on the
wire (control.api), delivery (control.publisher), persistence (none yet: what was registered is
gone when control ends).

A change is made in one step without awaiting, so concurrent calls are in some serial order; it is
answered when every ready worker has it. Requests that run are never cut by a change.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Protocol

from gatewayd.control.leases import IndexLeases
from gatewayd.control.publisher import Publisher
from gatewayd.control.state import State, find_replica
from gatewayd.core.entrypoint import Entrypoint, ModelEntry
from gatewayd.core.model import Auth, Replica, Service

_log = logging.getLogger(__name__)

DRAIN_TIMEOUT_S: Final = 30.0
NO_INTERNAL_IP: Final = "PD disaggregation requires internal IP for all replicas."
_POLL_S: Final = 0.025
# A request may be between two tables: taken from the router, not yet counted in the bridge.
_QUIET_POLLS: Final = 3


class RefusedError(Exception):
    """A change that is not made; the text says why, and is meant for the caller."""


@dataclass(frozen=True, slots=True)
class Drained:
    running: int  # requests that had not ended at the deadline; they go on


class RouterSets(Protocol):
    """The routers' side of a change."""

    def follow(self) -> None:
        """Start and retire routers, and aim each at its service's replicas, as the state says."""
        ...

    async def drop(self, service_key: str, replica_ids: list[str]) -> None:
        """Returns when the service's router sends no new request there; bounded."""
        ...


class Registry:
    def __init__(
        self, state: State, publisher: Publisher, routers: RouterSets, indexes: IndexLeases
    ) -> None:
        self._state = state
        self._publisher = publisher
        self._routers = routers
        self._indexes = indexes

    # --- services ------------------------------------------------------------------------------

    async def add_service(self, service: Service) -> None:
        if service.key in self._state.services:
            raise RefusedError(f"Service {service.key} is already registered")
        check_domains(self._state.services, [service])
        check_entrypoints(self._state.all_entrypoints(), [service])
        self._state.services[service.key] = service
        if service.model is not None:
            # A name that another service of the project had is this one's from now on.
            self._state.models[service.project, service.model] = ModelEntry(
                service.project,
                service.model,
                service.name,
                created=int(time.time()),
                format=service.model_format,
            )
        _log.info("service %s registered: %s", service.key, ", ".join(service.domains))
        await self._publish()

    async def remove_service(self, key: str) -> None:
        service = self._state.services.get(key)
        if service is None:
            raise RefusedError(f"Service {key} is not registered, cannot unregister")
        if service.origin == "file":
            raise RefusedError(
                f"Service {key} belongs to the configuration file, cannot unregister; "
                "remove it there and reload"
            )
        del self._state.services[key]
        for name, model in list(self._state.models.items()):
            if model.service_key == key:
                del self._state.models[name]
        _log.info("service %s unregistered", key)
        await self._publish()

    async def add_entrypoint(self, entrypoint: Entrypoint) -> None:
        """One for each project, and of one host: the last one registered counts."""
        check_entrypoints([entrypoint], self._state.services.values())
        self._state.entrypoints.pop(entrypoint.project, None)  # those that come later go before
        self._state.entrypoints[entrypoint.project] = entrypoint
        _log.info("models of %s are served at %s", entrypoint.project, entrypoint.domain)
        await self._publish()

    # --- replicas ------------------------------------------------------------------------------

    async def add_replica(self, key: str, replica: Replica) -> None:
        service = self._state.services.get(key)
        if service is None:
            raise RefusedError(f"Service {key} does not exist, cannot register replica")
        if find_replica(service, replica.id) is not None:
            raise RefusedError(f"Replica {replica.id} already exists in service {key}")
        check_peers([replace(service, replicas=(replica,))])
        if self._indexes.full:
            raise RefusedError("This gateway holds as many replicas as it can")
        self._put(replace(service, replicas=(*service.replicas, replica)))
        _log.info("replica %s of %s registered: %s", replica.id, key, replica.address)
        await self._publish()

    async def remove_replica(self, key: str, replica_id: str) -> None:
        """No new request from now on; those that run go on to their end."""
        self._require_replica(key, replica_id)
        await self._withdraw(key, replica_id)
        self._take_out(key, replica_id)
        _log.info("replica %s of %s unregistered", replica_id, key)
        await self._publish()

    async def drain_replica(self, key: str, replica_id: str, timeout: float) -> Drained:
        """No new request from now on; removed when the last one ends, or after `timeout`."""
        self._require_replica(key, replica_id)
        await self._withdraw(key, replica_id)
        running = await self._idle((key, replica_id), timeout)
        self._take_out(key, replica_id)
        how = f"with {running} requests still running" if running else "idle"
        _log.info("replica %s of %s drained and unregistered, %s", replica_id, key, how)
        await self._publish()
        return Drained(running)

    async def _withdraw(self, key: str, replica_id: str) -> None:
        """Out of every choice: the router's first, so that nothing it still chooses is lost."""
        service, replica = self._require_replica(key, replica_id)
        if not replica.draining:
            drained = replace(replica, draining=True)
            others = tuple(drained if r is replica else r for r in service.replicas)
            self._put(replace(service, replicas=others))
        service = self._state.services[key]
        if all(r.draining for r in service.replicas):
            # Without a target a router refuses; workers must not ask it any more.
            await self._publish()
            await self._routers.drop(key, [replica_id])
        else:
            await self._routers.drop(key, [replica_id])
            await self._publish()

    def _take_out(self, key: str, replica_id: str) -> None:
        """Only what was withdrawn: meanwhile the service may have been unregistered, or another
        call may have removed the replica and a third registered it anew."""
        service = self._state.services.get(key)
        if service is not None:
            kept = tuple(r for r in service.replicas if r.id != replica_id or not r.draining)
            self._put(replace(service, replicas=kept))

    async def _idle(self, key: tuple[str, str], timeout: float) -> int:
        """Requests that still run after at most `timeout` seconds."""
        deadline = asyncio.get_running_loop().time() + timeout
        quiet = 0
        while True:
            running = self._indexes.load(key)
            quiet = 0 if running else quiet + 1
            if quiet >= _QUIET_POLLS:
                return 0
            if asyncio.get_running_loop().time() >= deadline:
                return running
            await asyncio.sleep(_POLL_S)

    # --- the file ------------------------------------------------------------------------------

    async def replace_all(
        self,
        services: Mapping[str, Service],
        auth: Auth | None,
        trusted_proxies: tuple[str, ...],
        project: str,
        entrypoint: Entrypoint | None,
    ) -> None:
        """A reload: everything at once, or nothing (RefusedError)."""
        check_domains({}, services.values())
        check_peers(services.values())
        check_entrypoints(self._state.entrypoints.values(), services.values())
        self._state.services = dict(services)
        self._state.auth = auth
        self._state.trusted_proxies = trusted_proxies
        self._state.project = project
        self._state.entrypoint = entrypoint
        await self._publish()

    # --- shared --------------------------------------------------------------------------------

    def _require_replica(self, key: str, replica_id: str) -> tuple[Service, Replica]:
        service = self._state.services.get(key)
        if service is None:
            raise RefusedError(f"Service {key} does not exist, cannot unregister replica")
        replica = find_replica(service, replica_id)
        if replica is None:
            raise RefusedError(
                f"Replica {replica_id} does not exist in service {key}, cannot unregister"
            )
        return service, replica

    def _put(self, service: Service) -> None:
        self._state.services[service.key] = service

    async def _publish(self) -> None:
        self._routers.follow()
        await self._publisher.publish()


def check_peers(services: Iterable[Service]) -> None:
    """Replicas that meet each other have addresses that others can reach."""
    for service in services:
        apart = service.router is not None and service.router.pd_disaggregation
        if apart and any(replica.peer_host is None for replica in service.replicas):
            raise RefusedError(NO_INTERNAL_IP)


def check_entrypoints(entrypoints: Iterable[Entrypoint], services: Iterable[Service]) -> None:
    """A domain leads to a service or to models, not to both."""
    taken = {domain for service in services for domain in service.domains}
    for entrypoint in entrypoints:
        if entrypoint.domain in taken:
            raise RefusedError(
                f"Domain name '{entrypoint.domain}' cannot be that of a service and of the models "
                f"of project {entrypoint.project}"
            )


def check_domains(taken: Mapping[str, Service], new: Iterable[Service]) -> None:
    """A domain leads to one service."""
    owners = {domain: service.key for service in taken.values() for domain in service.domains}
    for service in new:
        for domain in service.domains:
            if owners.setdefault(domain, service.key) != service.key:
                raise RefusedError(f"Domain name '{domain}' is already taken by another service")
