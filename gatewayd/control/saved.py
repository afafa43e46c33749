"""What of the state outlives the process: everything that came through the registry.

Owns: which part of State that is, and putting it back. Does not own: its form on disk
(control.records), the files (control.store), when it is kept (control.keeper).

What the file says is read from the file again, so it is not kept; only replicas that were added to
its services are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from gatewayd.control.state import AcmeSettings, State
from gatewayd.core.entrypoint import Entrypoint, ModelEntry
from gatewayd.core.model import Replica, Service
from gatewayd.core.secret import Secret


@dataclass(frozen=True, slots=True)
class Saved:
    services: Mapping[str, Service] = field(default_factory=dict)  # by Service.key
    added: Mapping[str, tuple[Replica, ...]] = field(default_factory=dict)  # to the file's services
    entrypoints: Mapping[str, Entrypoint] = field(default_factory=dict)  # by project
    models: Mapping[tuple[str, str], ModelEntry] = field(default_factory=dict)
    keys: Mapping[str, Secret] = field(default_factory=dict)  # for ssh, by project
    acme: AcmeSettings | None = None


def take(state: State) -> Saved:
    services: dict[str, Service] = {}
    added: dict[str, tuple[Replica, ...]] = {}
    for key, service in state.services.items():
        if service.origin == "api":
            services[key] = service
        elif registered := tuple(r for r in service.replicas if r.origin == "api"):
            added[key] = registered
    return Saved(
        services,
        added,
        dict(state.entrypoints),
        dict(state.models),
        dict(state.keys),
        state.acme,
    )


def put_back(saved: Saved, state: State) -> list[str]:
    """Make the registered part of `state` that of `saved`; the file's stays. Gives a line for
    each thing that has no place beside the file. Replicas that drain go on draining."""
    told: list[str] = []
    before = state.services
    services = {
        key: replace(service, replicas=_of_file(service, saved.added.get(key, ())))
        for key, service in before.items()
        if service.origin == "file"
    }
    taken = {domain: key for key, service in services.items() for domain in service.domains}
    if state.entrypoint is not None:
        taken[state.entrypoint.domain] = "the model endpoint"
    for key, service in saved.services.items():
        if key in services:
            told.append(f"registered service {key} is left out: the file has one of this name")
        elif owner := next((taken[d] for d in service.domains if d in taken), None):
            told.append(f"registered service {key} is left out: the file gives a domain to {owner}")
        else:
            services[key] = _draining_as_before(service, before.get(key))
    told += [
        f"registered replica {replica.id} is left out: the file has no service {key}"
        for key, replicas in saved.added.items()
        if key not in services
        for replica in replicas
    ]
    entrypoints = dict(saved.entrypoints)
    for project, entrypoint in saved.entrypoints.items():
        if entrypoint.domain in taken:
            told.append(f"models of {project} are not served at {entrypoint.domain}: see the file")
            del entrypoints[project]
    state.services = services
    state.entrypoints = entrypoints
    state.models = dict(saved.models)
    state.keys = dict(saved.keys)
    state.acme = saved.acme
    return told


def _of_file(service: Service, added: tuple[Replica, ...]) -> tuple[Replica, ...]:
    own = tuple(r for r in service.replicas if r.origin == "file")
    ids = {replica.id for replica in own}
    new = tuple(replica for replica in added if replica.id not in ids)
    whole = _draining_as_before(replace(service, replicas=(*own, *new)), service)
    return whole.replicas


def _draining_as_before(service: Service, before: Service | None) -> Service:
    """A drain belongs to the call that waits for it, so none outlives the process."""
    draining = {r.id for r in before.replicas if r.draining} if before is not None else set()
    if all(r.draining == (r.id in draining) for r in service.replicas):
        return service
    replicas = tuple(replace(r, draining=r.id in draining) for r in service.replicas)
    return replace(service, replicas=replicas)
