"""The compiled, immutable view of the registry that workers and the bridge act on.

Owns: `Snapshot`, `BridgeSnapshot` and how they are compiled from services and endpoints.
Does not own: delivery (control.publisher), use (proxy, bridge).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from gatewayd.core.entrypoint import Entrypoint, ModelEntry, ModelFormat
from gatewayd.core.frames import by_fields
from gatewayd.core.model import Auth, Endpoint, PeerFields, ReplicaRole, Service, Upstream
from gatewayd.core.ratelimit import Rule, compile_limits
from gatewayd.core.reach import allowed_paths, counted_limits


@by_fields
@dataclass(frozen=True, slots=True)
class Target:
    """A served service: its policy and what it is dialled by."""

    service: Service
    upstream: Upstream
    allowed_paths: tuple[str, ...] | None  # effective allow-list
    openai_errors: bool  # errors are JSON in OpenAI's shape whatever the client accepts
    forward_auth: bool
    limits: tuple[Rule, ...] = ()  # service.rate_limits made ready, longest prefix first
    label: str = ""  # what access lines call the service, as metrics do
    column: int = 0  # where its requests are counted (net.demand)


@by_fields
@dataclass(frozen=True, slots=True)
class ModelTarget:
    """A model at an entrypoint: whose requests are requests of `target`."""

    name: str
    created: int
    format: ModelFormat
    target: Target


@by_fields
@dataclass(frozen=True, slots=True)
class EntrypointTarget:
    """A host that serves the models of a project under their names. `auth`: a token is needed
    whatever the service of the model asks for."""

    project: str
    auth: bool
    https: bool
    models: tuple[ModelTarget, ...]  # by name


@by_fields
@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything a worker needs to serve; a request keeps the one it began with."""

    version: int
    targets: Mapping[str, Target]  # lower-case host without port -> target
    auth: Auth | None = None
    trusted_proxies: tuple[str, ...] = ()
    entrypoints: Mapping[str, EntrypointTarget] = field(default_factory=dict)  # by host as well


@by_fields
@dataclass(frozen=True, slots=True)
class BridgePort:
    """A loopback port that stands for one replica.

    With `peer_fields` (RouterTraits) they are made true in what passes: whoever is told to meet
    this port meets `peer_host` at the bootstrap port of its `role` instead.
    """

    port: int
    endpoint: Endpoint
    service: str  # Service.key
    idle_timeout: float | None
    first_byte_timeout: float | None
    connect_timeout: float | None
    token_header: bytes = b""
    peer_fields: PeerFields | None = None
    peer_host: str | None = None
    role: ReplicaRole | None = None  # None where there are none, and while it is not known


@by_fields
@dataclass(frozen=True, slots=True)
class BridgeSnapshot:
    version: int
    ports: Mapping[int, BridgePort] = field(default_factory=dict)


def compile_snapshot(
    version: int,
    services: Iterable[Service],
    upstreams: Mapping[str, Upstream],
    *,
    auth: Auth | None,
    trusted_proxies: tuple[str, ...] = (),
    project: str = "main",
    entrypoints: Iterable[Entrypoint] = (),
    models: Iterable[ModelEntry] = (),
    columns: Mapping[str, int] = MappingProxyType({}),
    before: Mapping[str, Target] = MappingProxyType({}),
) -> Snapshot:
    """Flatten services into a host table. `upstreams` and `columns` are keyed by `Service.key`; a
    draining replica has no endpoint. Domains are unique by the registry's word. Services of
    `project` are called by their bare names. `before` are targets of an earlier snapshot: those of
    the very same service and upstream are taken over, so that only what changed is made."""
    targets: dict[str, Target] = {}
    by_service: dict[str, Target] = {}
    forward = auth is None or auth.forward
    for service in services:
        upstream = upstreams[service.key]
        fixed = (
            forward or not service.auth,
            service.name if service.project == project else service.key,
            columns.get(service.key, 0),
        )
        known = before.get(service.key)
        if (
            known is not None
            and known.service is service
            and known.upstream is upstream
            and (known.forward_auth, known.label, known.column) == fixed
        ):
            by_service[service.key] = known
            targets.update(dict.fromkeys(map(str.lower, service.domains), known))
            continue
        routed = service.router_replica or service.router is not None
        target = by_service[service.key] = Target(
            service=service,
            upstream=upstream,
            allowed_paths=allowed_paths(service, upstream.traits),
            openai_errors=service.model is not None or routed,
            forward_auth=fixed[0],
            limits=compile_limits(service.key, counted_limits(service)),
            label=fixed[1],
            column=fixed[2],
        )
        for domain in service.domains:
            targets[domain.lower()] = target
    return Snapshot(
        version=version,
        targets=targets,
        auth=auth,
        trusted_proxies=trusted_proxies,
        entrypoints=_entrypoints(entrypoints, models, by_service, may_ask=auth is not None),
    )


def _entrypoints(
    entrypoints: Iterable[Entrypoint],
    models: Iterable[ModelEntry],
    targets: Mapping[str, Target],
    *,
    may_ask: bool,
) -> dict[str, EntrypointTarget]:
    """By host. A model whose service is gone is not served."""
    by_project: dict[str, list[ModelTarget]] = {}
    for model in sorted(models, key=lambda model: model.name):
        target = targets.get(model.service_key)
        if target is not None:
            by_project.setdefault(model.project, []).append(
                ModelTarget(model.name, model.created, model.format, target)
            )
    return {
        entrypoint.domain.lower(): EntrypointTarget(
            entrypoint.project,
            entrypoint.auth and may_ask,
            entrypoint.https,
            tuple(by_project.get(entrypoint.project, ())),
        )
        for entrypoint in entrypoints
    }
