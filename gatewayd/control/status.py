"""What `gatewayd status` and `/metrics` show: one place that looks at every part.

Owns: the shape of `/api/status`, readiness, the sample for the metrics. Does not own: any of the
parts.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import gatewayd
from gatewayd.control.certs import Certificates, CertificateStatus
from gatewayd.control.demands import Demands
from gatewayd.control.leases import IndexLeases
from gatewayd.control.publisher import Publisher
from gatewayd.control.reload import Reloader
from gatewayd.control.roles import Roles
from gatewayd.control.router_host import RouterHost
from gatewayd.control.router_hosts import RouterHosts
from gatewayd.control.sample import RouterSample, Sample, ServiceSample
from gatewayd.control.slot import Slot
from gatewayd.control.sockets import Sockets
from gatewayd.control.state import State
from gatewayd.control.succession import Succession
from gatewayd.control.telemetry import NOBODY, Telemetry
from gatewayd.control.tunnels import SshTunnels
from gatewayd.control.turn import Turn
from gatewayd.control.workers import Workers
from gatewayd.core.model import Replica, Service
from gatewayd.core.ssh import describe

_SETTLE_S: Final = 1.0
# How an exchange went; one that was answered by the gateway itself went none of them.
WAYS: Final = ("direct", "through", "steered", "fallback")


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    passed: bool
    detail: str


class Status:
    def __init__(
        self,
        *,
        state: State,
        workers: Workers,
        publisher: Publisher,
        routers: RouterHosts,
        roles: Roles,
        tunnels: SshTunnels,
        indexes: IndexLeases,
        demands: Demands,
        telemetry: Telemetry,
        sockets: Sockets,
        reloader: Reloader,
        certificates: Certificates,
        succession: Succession,
    ) -> None:
        self._state = state
        self._workers = workers
        self._publisher = publisher
        self._routers = routers
        self._roles = roles
        self._tunnels = tunnels
        self._indexes = indexes
        self._demands = demands
        self._telemetry = telemetry
        self._sockets = sockets
        self._reloader = reloader
        self._certificates = certificates
        self._succession = succession
        self._started = time.monotonic()
        self.draining = False

    def summary(self) -> str:
        """The line for whoever waits for the start."""
        services = self._state.services.values()
        replicas = sum(len(service.replicas) for service in services)
        public = (f"{each.scheme} {each.address}" for each in self._sockets.public)
        return (
            f"ready: {', '.join(public)}, admin {self._sockets.admin_address}; "
            f"{len(self._workers.slots)} workers, {len(services)} services, {replicas} replicas"
        )

    async def checks(self) -> Sequence[Check]:
        """What /readyz wants to hear; ready when all passed."""
        await self._publisher.settle(_SETTLE_S)
        ready, wanted = len(self._workers.ready()), len(self._workers.slots)
        return (
            Check("accepting", not self.draining, "draining" if self.draining else "yes"),
            Check("workers", ready == wanted, f"{ready} of {wanted} serve"),
            Check("snapshot", self._publisher.up_to_date(), f"version {self._publisher.version}"),
            # Never in the way of others: one service without replicas must not take the rest away.
            *(Check(f"service {label}", True, f"no {role}") for label, role in self._lacking()),
        )

    def _lacking(self) -> Iterator[tuple[str, str]]:
        """Services that wait for a replica of some role, and for which."""
        for key, host in self._routers:
            if host.lacks and key in self._state.services:
                yield self._label(self._state.services[key]), " and no ".join(host.lacks)

    # --- /api/status ---------------------------------------------------------------------------

    async def as_json(self) -> bytes:
        """Made in slices, since of hundreds of services it takes many milliseconds. Services may
        come and go meanwhile: what is gone when its turn comes is left out."""
        turn = Turn()
        config = self._reloader.config
        first = {
            "version": gatewayd.__version__,
            "name": config.name,
            "project": config.project,
            "config": config.source or None,
            "pid": os.getpid(),
            "uptime_seconds": round(time.monotonic() - self._started, 1),
            "ready": self._publisher.up_to_date() and not self.draining,
            "draining": self.draining,
            "snapshot": self._publisher.version,
            "listeners": self._listeners(),
            "workers": [_slot(slot) for slot in self._workers.slots],
            "bridge": _slot(self._workers.bridge) if self._workers.bridge_wanted else None,
        }
        services = []
        for key in list(self._state.services):
            if (service := self._state.services.get(key)) is not None:
                services.append(json.dumps(self._service(service)))
                await turn.over()
        last = {
            "succession": self._succession.as_json(),
            "certificates": [describe_certificate(each) for each in self._certificates.status()],
            "cloud": dict(config.cloud),
        }
        one = (json.dumps(first)[:-1], f'"services": [{", ".join(services)}]', json.dumps(last)[1:])
        return ", ".join(one).encode()

    def _listeners(self) -> list[dict[str, Any]]:
        listeners = [
            {
                "kind": listener.scheme,
                "name": listener.name,
                "address": str(listener.address),
            }
            for listener in self._sockets.public
        ]
        admin, metrics = self._sockets.admin_address, self._sockets.metrics_address
        listeners.append({"kind": "admin", "name": str(admin), "address": str(admin)})
        if metrics is not None:
            listeners.append({"kind": "metrics", "name": str(metrics), "address": str(metrics)})
        return listeners

    def _service(self, service: Service) -> dict[str, Any]:
        ways = self._telemetry.ways(service.key)
        return {
            "project": service.project,
            "name": service.name,
            "domains": list(service.domains),
            "origin": service.origin,
            "https": service.https,
            "auth": service.auth,
            "model": service.model,
            "router": self._routers.status(service.key),
            "requests": {way: ways[way] for way in WAYS},
            "requests_last_minute": self._demands.begun(service, 60),
            "replicas": [
                {
                    "id": replica.id,
                    "address": str(replica.address),
                    "origin": replica.origin,
                    "state": self._state.replica_state(service.key, replica),
                    "in_flight": self._indexes.load((service.key, replica.id)),
                    "bridge_port": self._publisher.bridge_port(service.key, replica.id),
                    "tunnel": None if replica.tunnel is None else describe(replica.tunnel),
                    "tunnel_fault": self._tunnels.fault(service.key, replica.id),
                    **self._role(service, replica),
                }
                for replica in service.replicas
            ],
        }

    def _role(self, service: Service, replica: Replica) -> dict[str, str | None]:
        if service.router is None or not service.router.pd_disaggregation:
            return {"role": None, "role_fault": None}
        role = self._state.roles.get((service.key, replica.id))
        fault = self._roles.fault(service.key, replica.id)
        return {"role": "unknown" if role is None else role.name, "role_fault": fault}

    # --- /metrics ------------------------------------------------------------------------------

    def sample(self) -> Sample:
        nobodys = self._telemetry.total(NOBODY)
        return Sample(
            services=self._service_samples(),
            workers=len(self._workers.ready()),
            worker_restarts=self._workers.restarts,
            connections=sum(process.connections for process in self._workers.alive()),
            log_lines_dropped=nobodys.log_lines_dropped,
            handshakes_held=nobodys.handshakes_held,
            reloads=dict(self._reloader.results),
            certificates={
                domain: each.not_after
                for each in self._certificates.status()
                for domain in each.domains
                if each.not_after is not None and each.wanted
            },
        )

    def _service_samples(self) -> Iterator[ServiceSample]:
        """One at a time, since of hundreds they take milliseconds. Services may come and go
        meanwhile: a name is told once, and what is gone when its turn comes is left out."""
        yield ServiceSample("", self._telemetry.total(NOBODY))
        hosts = dict(self._routers)
        left: dict[str, list[tuple[str, int]]] = {}  # by service: removed replicas that still work
        for (service_key, id_), load in self._indexes.busy():
            if not id_.startswith("@"):  # a router's endpoint is no replica
                left.setdefault(service_key, []).append((id_, load))
        for key in list(self._state.services):
            service = self._state.services.get(key)
            if service is not None:
                yield self._service_sample(service, hosts.get(key), left.get(key, ()))

    def _service_sample(
        self, service: Service, host: RouterHost | None, left: Iterable[tuple[str, int]]
    ) -> ServiceSample:
        key = service.key
        counted = self._telemetry.total(key)
        present = {"", *(replica.id for replica in service.replicas)}  # "" is the router
        counted.upstream_errors = {
            (replica, kind): count
            for (replica, kind), count in counted.upstream_errors.items()
            if replica in present
        }
        in_flight = [(each.id, self._indexes.load((key, each.id))) for each in service.replicas]
        in_flight += [(id_, load) for id_, load in left if id_ not in present]
        return ServiceSample(
            self._label(service),
            counted,
            in_flight,
            Counter(self._state.replica_state(key, replica) for replica in service.replicas),
            None if host is None else RouterSample(host.endpoint is not None, host.restarts),
        )

    def _label(self, service: Service) -> str:
        """Bare names for the file's own project; another project's cannot hide behind them."""
        own = service.project == self._reloader.config.project
        return service.name if own else service.key


def describe_certificate(certificate: CertificateStatus) -> dict[str, Any]:
    end = certificate.not_after
    return {
        "domains": list(certificate.domains),
        "issuer": certificate.issuer,
        "expires": None if end is None else datetime.fromtimestamp(end, UTC).isoformat(),
        "source": certificate.source,
        "fault": certificate.fault,
    }


def _slot(slot: Slot) -> dict[str, Any]:
    process = slot.process
    return {
        "slot": slot.number,
        "pid": None if process is None else process.pid,
        "state": "waiting" if process is None else "ready" if process.ready else "starting",
        "restarts": slot.restarts,
        "last_exit": slot.last_exit,
        "snapshot": None if process is None else process.acked,
        "connections": 0 if process is None else process.connections,
    }
