"""Services and replicas as they are changed at run time: the only writer of State.

Owns: what may be changed by whom, the order of a change, draining. Does not own: the words on the
wire (control.api), delivery (control.publisher), what is kept on disk and how (control.keeper),
the tunnels' side of a change (control.tunneled).

A change is made in one step without awaiting, so concurrent calls are in some serial order; it is
answered when it is on disk and every ready worker has it. What it has to wait for before (a
certificate, a tunnel) is waited for with its names reserved. Requests that run are never cut.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from gatewayd.control.certs import CertificateError
from gatewayd.control.conflicts import (
    RefusedError,
    behind,
    check_domains,
    check_entrypoints,
    check_peers,
    of_file,
)
from gatewayd.control.draining import until_idle
from gatewayd.control.leases import IndexLeases, LeaseError
from gatewayd.control.outside import (
    Certificates,
    NoTunnels,
    RouterSets,
    TunnelError,
    Tunnels,
)
from gatewayd.control.publisher import Publisher
from gatewayd.control.reservations import Reservations
from gatewayd.control.state import AcmeSettings, State, find_replica
from gatewayd.control.tunneled import Tunneled
from gatewayd.core.entrypoint import Entrypoint, ModelEntry
from gatewayd.core.model import Auth, Replica, Service
from gatewayd.core.secret import Secret

_log = logging.getLogger(__name__)

DRAIN_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Drained:
    running: int  # requests that had not ended at the deadline; they go on


Keep = Callable[[], Awaitable[None]]
"""Returns when all that was changed is on disk; raises when it could not be, and was undone."""


async def _nowhere() -> None:
    """Where nothing outlives the process."""


class Registry:
    def __init__(
        self,
        state: State,
        publisher: Publisher,
        routers: RouterSets,
        indexes: IndexLeases,
        *,
        keep: Keep = _nowhere,
        tunnels: Tunnels | None = None,
        certificates: Certificates | None = None,
        drain_timeout: float = DRAIN_TIMEOUT_S,
    ) -> None:
        self._state = state
        self._publisher = publisher
        self._routers = routers
        self._indexes = indexes
        self._keep = keep
        self._idle = functools.partial(until_idle, indexes.load)
        self._tunnels = Tunneled(state, tunnels or NoTunnels(), self._idle, drain_timeout)
        self._certificates = certificates
        self._reserved = Reservations()

    async def aclose(self) -> None:
        await self._tunnels.aclose()

    # --- services ------------------------------------------------------------------------------

    async def add_service(self, service: Service, ssh_key: Secret | None = None) -> None:
        """`ssh_key` is what replicas of the service's project are reached with from now on."""
        domains = [("domain", domain) for domain in service.domains]
        async with self._reserved.of(("service", service.key), *domains):
            self._check_new_service(service)
            if service.https:
                await self._certify(service.domains)
                self._check_new_service(service)  # a reload asks nobody
            with self._checked():
                self._put(service)
                if service.model is not None:
                    # A name that another service of the project had is this one's from now on.
                    self._state.models[service.project, service.model] = ModelEntry(
                        service.project,
                        service.model,
                        service.name,
                        created=int(time.time()),
                        format=service.model_format,
                    )
            if ssh_key is not None:
                if self._state.keys.get(service.project, ssh_key) != ssh_key:
                    _log.warning("project %s has another ssh key from now on", service.project)
                self._state.keys[service.project] = ssh_key
            await self._commit()
        _log.info("service %s registered: %s", service.key, ", ".join(service.domains))

    async def remove_service(self, key: str) -> None:
        async with self._reserved.of(("service", key)):
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
            await self._commit()
        for replica in service.replicas:
            self._tunnels.retire(key, replica)
        _log.info("service %s unregistered", key)

    async def set_id(self, key: str, id_: str) -> None:
        service = self._state.services.get(key)
        if service is None:
            raise RefusedError(f"Service {key} does not exist, cannot set ID")
        if service.id is not None:
            raise RefusedError(f"Service {key} already has an ID")
        if service.origin == "file":
            raise RefusedError(f"Service {key} belongs to the configuration file, cannot set ID")
        self._put(replace(service, id=id_))
        await self._commit()

    async def add_entrypoint(self, entrypoint: Entrypoint) -> None:
        """One for each project, and of one host: the last one registered counts."""
        name = ("entrypoint", entrypoint.project)
        async with self._reserved.of(name, ("domain", entrypoint.domain)):
            check_entrypoints([entrypoint], of_file(self._state.services.values()))
            if entrypoint.https:
                await self._certify((entrypoint.domain,))
                check_entrypoints([entrypoint], of_file(self._state.services.values()))
            self._state.entrypoints.pop(entrypoint.project, None)  # later ones go before
            self._state.entrypoints[entrypoint.project] = entrypoint
            await self._commit()
        if owner := behind(entrypoint, self._state.services.values()):
            what = "models of %s are not served at %s before service %s is unregistered"
            _log.warning(what, entrypoint.project, entrypoint.domain, owner.key)
        else:
            _log.info("models of %s are served at %s", entrypoint.project, entrypoint.domain)

    async def set_acme(self, settings: AcmeSettings) -> None:
        self._state.acme = settings
        await self._commit()

    def _check_new_service(self, service: Service) -> None:
        if service.key in self._state.services:
            raise RefusedError(f"Service {service.key} is already registered")
        check_domains(self._state.services, [service])
        check_entrypoints(self._state.all_entrypoints(), [service])

    async def _certify(self, domains: tuple[str, ...]) -> None:
        if self._certificates is None:
            raise RefusedError("This gateway serves no HTTPS")
        try:
            await self._certificates.ensure(domains)
        except CertificateError as error:
            raise RefusedError(str(error)) from error

    # --- replicas ------------------------------------------------------------------------------

    async def add_replica(self, key: str, replica: Replica) -> None:
        async with self._reserved.of(("replica", key, replica.id)):
            self._check_new_replica(key, replica)
            if replica.tunnel is not None:
                try:
                    replica = await self._tunnels.open(key, replica)
                except TunnelError as error:
                    raise RefusedError(
                        f"Cannot register replica {replica.id} in service {key}: {error}"
                    ) from error
            try:
                service = self._check_new_replica(key, replica)  # it took a while
                with self._checked():
                    self._put(replace(service, replicas=(*service.replicas, replica)))
                await self._commit()
            except BaseException:
                await self._tunnels.close(key, replica)
                raise
        _log.info("replica %s of %s registered: %s", replica.id, key, replica.address)

    def _check_new_replica(self, key: str, replica: Replica) -> Service:
        service = self._state.services.get(key)
        if service is None:
            raise RefusedError(f"Service {key} does not exist, cannot register replica")
        if find_replica(service, replica.id) is not None:
            raise RefusedError(f"Replica {replica.id} already exists in service {key}")
        check_peers([replace(service, replicas=(replica,))])
        if self._indexes.full:
            raise RefusedError("This gateway holds as many replicas as it can")
        return service

    async def remove_replica(self, key: str, replica_id: str) -> None:
        """No new request from now on; those that run go on to their end."""
        async with self._reserved.of(("replica", key, replica_id)):
            service, replica = self._require_replica(key, replica_id)
            if service.router is not None or replica.draining:
                await self._withdraw(key, replica_id)
                self._take_out(key, replica_id)
            else:  # workers alone choose, and they hear it with the answer
                kept = tuple(r for r in service.replicas if r is not replica)
                self._put(replace(service, replicas=kept))
            await self._commit()
        self._tunnels.retire(key, replica)
        _log.info("replica %s of %s unregistered", replica_id, key)

    async def drain_replica(self, key: str, replica_id: str, timeout: float) -> Drained:
        """No new request from now on; removed when the last one ends, or after `timeout`."""
        _, replica = self._require_replica(key, replica_id)
        await self._withdraw(key, replica_id)
        running = await self._idle((key, replica_id), timeout)
        if self._take_out(key, replica_id):
            await self._commit()
            self._tunnels.retire(key, replica)
        how = f"with {running} requests still running" if running else "idle"
        _log.info("replica %s of %s drained and unregistered, %s", replica_id, key, how)
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

    def _take_out(self, key: str, replica_id: str) -> bool:
        """Only what was withdrawn: meanwhile the service may have been unregistered, or another
        call may have removed the replica and a third registered it anew."""
        service = self._state.services.get(key)
        if service is None:
            return False
        kept = tuple(r for r in service.replicas if r.id != replica_id or not r.draining)
        self._put(replace(service, replicas=kept))
        return len(kept) < len(service.replicas)

    # --- the file ------------------------------------------------------------------------------

    async def replace_all(
        self,
        services: Mapping[str, Service],
        auth: Auth | None,
        trusted_proxies: tuple[str, ...],
        project: str,
        entrypoint: Entrypoint | None,
        registered_auth: Auth | None,
    ) -> None:
        """A reload: everything at once, or nothing (RefusedError)."""
        check_domains({}, services.values())
        check_peers(services.values())
        check_entrypoints(self._state.entrypoints.values(), of_file(services.values()))
        before = self._state.services
        with self._checked():
            self._state.services = dict(services)
            self._state.auth = auth
            self._state.registered_auth = registered_auth
            self._state.trusted_proxies = trusted_proxies
            self._state.project = project
            self._state.entrypoint = entrypoint
        self._tunnels.follow(before)
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

    def resume(self) -> None:
        """At the start: tunnels of all replicas that have one begin to open, nobody waits."""
        self._tunnels.follow({})

    def tunnels_changed(self) -> None:
        """One has come up, or broken."""
        if self._tunnels.observe():
            self._routers.follow()
            self._publisher.request()

    def _put(self, service: Service) -> None:
        self._state.services[service.key] = service

    @contextlib.contextmanager
    def _checked(self) -> Iterator[None]:
        """What is changed within can be told to workers, or it is not changed at all: else it would
        be saved, and meet every later change and the next start."""
        before = self._state.copy()
        try:
            yield
            self._publisher.check()
        except BaseException as error:
            self._state.become(before)
            self._publisher.request()
            if isinstance(error, LeaseError):
                raise RefusedError(str(error)) from error
            raise

    async def _commit(self) -> None:
        """Saved, and then everywhere. When it cannot be saved it is undone by now."""
        try:
            await self._keep()
        except BaseException:
            self._tunnels.observe()
            self._routers.follow()
            self._publisher.request()
            raise
        await self._publish()

    async def _publish(self) -> None:
        self._tunnels.observe()
        self._routers.follow()
        await self._publisher.publish()
