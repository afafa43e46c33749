"""The API-facing mutable truth: which services and replicas there are.

Owns: the values. Does not own: who may change them (control.registry is the only writer), what
the data plane makes of them (control.publisher).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace

from gatewayd.core.entrypoint import Entrypoint, ModelEntry
from gatewayd.core.model import Auth, Replica, ReplicaRole, Service
from gatewayd.core.secret import Secret


@dataclass(frozen=True, slots=True)
class AcmeSettings:
    """Which authority certificates come from, as a control plane has set it."""

    server: str | None = None  # its directory's URL
    eab_kid: str | None = None
    eab_hmac_key: Secret | None = None


@dataclass(slots=True)
class State:
    auth: Auth | None = None
    registered_auth: Auth | None = None  # who judges for what is registered, where `auth` is none
    trusted_proxies: tuple[str, ...] = ()
    project: str = "main"  # the file's own; its services are called by their bare names
    services: dict[str, Service] = field(default_factory=dict)  # by Service.key
    entrypoint: Entrypoint | None = None  # the file's own
    entrypoints: dict[str, Entrypoint] = field(default_factory=dict)  # registered, by project
    # registered, by (project, name); those of services without an entry here follow from them
    models: dict[tuple[str, str], ModelEntry] = field(default_factory=dict)
    keys: dict[str, Secret] = field(default_factory=dict)  # registered, for ssh, by project
    acme: AcmeSettings | None = None  # registered; None: nobody has said anything
    # (Service.key, replica id) of those whose tunnel is not up: seen, not configured
    connecting: set[tuple[str, str]] = field(default_factory=set)
    # (Service.key, replica id) of those whose address refuses connections: seen, not configured
    unreachable: set[tuple[str, str]] = field(default_factory=set)
    # the same of those whose service has roles, once they have told theirs: seen, not configured
    roles: dict[tuple[str, str], ReplicaRole] = field(default_factory=dict)

    def copy(self) -> State:
        """As it is configured now, whatever is changed later."""
        return replace(
            self,
            services=dict(self.services),
            entrypoints=dict(self.entrypoints),
            models=dict(self.models),
            keys=dict(self.keys),
        )

    def become(self, other: State) -> None:
        for each in fields(self):
            setattr(self, each.name, getattr(other, each.name))

    def replicas(self) -> Iterator[tuple[Service, Replica]]:
        for service in self.services.values():
            for replica in service.replicas:
                yield service, replica

    def replica(self, service_key: str, replica_id: str) -> Replica | None:
        service = self.services.get(service_key)
        return None if service is None else find_replica(service, replica_id)

    def judge(self) -> Auth | None:
        """Who says whether a token is good. Without an `auth` nothing of the file asks."""
        asked = self.entrypoints or any(service.auth for service in self.services.values())
        return self.auth or (self.registered_auth if asked else None)

    def all_entrypoints(self) -> Iterator[Entrypoint]:
        yield from self.entrypoints.values()
        if self.entrypoint is not None:
            yield self.entrypoint

    def all_models(self, created: int) -> list[ModelEntry]:
        """Registered ones, and those of services that only name theirs, `created` then. One name
        of a project leads to one service: the file's, else the one that came last."""
        found: dict[tuple[str, str], ModelEntry] = {}
        registered = {(m.project, m.service) for m in self.models.values()}
        for service in sorted(self.services.values(), key=lambda service: service.origin == "file"):
            key = (service.project, service.model or "")
            if service.model is None or (service.project, service.name) in registered:
                continue
            if service.origin == "file" or key not in self.models:
                found[key] = ModelEntry(*key, service.name, created, service.model_format)
        return list({**self.models, **found}.values())

    def replica_state(self, service_key: str, replica: Replica) -> str:
        """up | draining | connecting | unreachable"""
        if replica.draining:
            return "draining"
        if (service_key, replica.id) in self.connecting:
            return "connecting"
        return "unreachable" if (service_key, replica.id) in self.unreachable else "up"


def find_replica(service: Service, replica_id: str) -> Replica | None:
    return next((r for r in service.replicas if r.id == replica_id), None)
