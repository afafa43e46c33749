"""The state of another gateway, read once: its services, replicas, models and keys become ours.

Owns: two forms of such files, as pieces that our own registry calls take. Does not own: what those
pieces mean (control.api), where they are kept then (control.store).

`state-v2.json` is what those gateways write today, `state.json` what they wrote before; the keys of
the older one are files of their own. What cannot be taken over is said and left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from gatewayd.config.model import Config
from gatewayd.control.api.model_bodies import EntrypointBody
from gatewayd.control.api.replica_bodies import RegisterReplicaBody, to_replica
from gatewayd.control.api.replies import InvalidBodyError, validate
from gatewayd.control.api.schemas import ConfigBody, RegisterServiceBody, to_service
from gatewayd.control.conflicts import RefusedError, check_domains, check_entrypoints
from gatewayd.control.saved import Saved
from gatewayd.control.state import AcmeSettings
from gatewayd.core.entrypoint import Entrypoint, ModelEntry
from gatewayd.core.model import Replica, Service
from gatewayd.core.secret import Secret

_BODY_SIZE_BEFORE: Final = 1024 * 1024  # what the older form means by saying nothing


class NotInheritedError(Exception):
    """The file cannot be taken over at all; the text says why."""


@dataclass(frozen=True, slots=True)
class _Old:
    """What both forms say, as bodies of registry calls."""

    services: list[tuple[str, dict[str, Any], list[dict[str, Any]]]]  # project, itself, replicas
    created: Mapping[tuple[str, str], int]  # of models, by project and name
    entrypoints: list[tuple[str, dict[str, Any]]]
    keys: Mapping[str, str]
    acme: Mapping[str, Any] = field(default_factory=dict)


def inherit(path: Path, keys: Path, config: Config) -> tuple[Saved, list[str]]:
    """Everything that can be taken over, and a line for each thing that cannot. `keys` is the
    folder of the older form's keys, a file for each project. Raises NotInheritedError."""
    try:
        root = json.loads(path.read_bytes())
    except OSError as error:
        raise NotInheritedError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise NotInheritedError(f"{path}: not JSON: {error}") from error
    told: list[str] = []
    try:
        if not isinstance(root, dict):
            raise TypeError
        if isinstance(root.get("store"), dict):
            old = _older(root, keys, told)
        elif isinstance(root.get("services"), dict):
            old = _newer(root)
        else:
            raise TypeError
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise NotInheritedError(f"{path}: not the state of such a gateway") from error
    return _taken_over(old, config, told), told


def _taken_over(old: _Old, config: Config, told: list[str]) -> Saved:
    keys = {project.lower(): Secret(text) for project, text in old.keys.items()}
    services: dict[str, Service] = {}
    models: dict[tuple[str, str], ModelEntry] = {}
    for project, body, bodies in old.services:
        name = f"service {project}/{body.get('run_name')}"
        try:
            service = to_service(project, validate(body, RegisterServiceBody, name), config)
            check_domains(services, [service])
        except (InvalidBodyError, RefusedError) as error:
            told.append(f"{name} is left out: {_words(error)}")
            continue
        replicas = _replicas(service, bodies, keys.get(project), told)
        services[service.key] = replace(service, replicas=replicas)
        model = service.model
        if model is not None:
            models[project, model] = ModelEntry(
                project, model, service.name, old.created[project, model], service.model_format
            )
    return Saved(
        services=services,
        entrypoints=_entrypoints(old, services, told),
        models=models,
        keys=keys,
        acme=_acme(old, told),
    )


def _replicas(
    service: Service, bodies: list[dict[str, Any]], key: Secret | None, told: list[str]
) -> tuple[Replica, ...]:
    apart = service.router is not None and service.router.pd_disaggregation
    found: dict[str, Replica] = {}
    for body in bodies:
        name = f"replica {body.get('job_id')} of {service.key}"
        try:
            read = validate(body, RegisterReplicaBody, name)
            replica = to_replica(read, key, by_internal_ip=apart)
        except (InvalidBodyError, RefusedError) as error:
            told.append(f"{name} is left out: {_words(error)}")
        else:
            found[replica.id] = replica
    return tuple(found.values())


def _entrypoints(
    old: _Old, services: Mapping[str, Service], told: list[str]
) -> dict[str, Entrypoint]:
    found: dict[str, Entrypoint] = {}
    for project, body in old.entrypoints:
        try:
            entrypoint = validate(body, EntrypointBody, "entrypoint").meaning(project)
            check_entrypoints([entrypoint], services.values())
        except (InvalidBodyError, RefusedError) as error:
            told.append(f"entrypoint of {project} is left out: {_words(error)}")
        else:
            found[project] = entrypoint
    return found


def _acme(old: _Old, told: list[str]) -> AcmeSettings | None:
    acme = old.acme
    body = {f"acme_{key}": acme.get(key) for key in ("server", "eab_kid", "eab_hmac_key")}
    try:
        settings = validate(body, ConfigBody, "acme_settings").meaning()
    except InvalidBodyError as error:
        told.append(f"the authority of certificates is left out: {_words(error)}")
        return None
    return None if settings == AcmeSettings() else settings


def _words(error: Exception) -> str:
    if isinstance(error, InvalidBodyError):
        fault = error.errors[0]
        return f"{'.'.join(map(str, fault['loc'][1:]))}: {fault['msg']}"
    return str(error)


# --- today's form ------------------------------------------------------------------------------


def _newer(root: dict[str, Any]) -> _Old:
    services: list[tuple[str, dict[str, Any], list[dict[str, Any]]]] = []
    options: dict[tuple[str, str], dict[str, Any]] = {}
    created: dict[tuple[str, str], int] = {}
    for project, name, model in _each(root.get("models")):
        made = datetime.fromisoformat(model["created_at"])
        created[project.lower(), name] = int(made.timestamp())
        options[project, model["run_name"]] = {"type": "chat", "name": name} | model["format_spec"]
    for project, run, service in _each(root.get("services")):
        model = options.get((project, run))
        body = {
            **service,
            "run_name": run,
            "options": {} if model is None else {"openai": {"model": model}},
        }
        body.pop("strip_prefix", None)  # it says how its server's own proxy works
        if service.get("cors_enabled"):
            body["cors"] = "openai"
        replicas = [
            {**replica, "job_id": replica["id"], "ssh_host": replica["ssh_destination"]}
            for replica in service.get("replicas", ())
        ]
        services.append((project.lower(), body, replicas))
    return _Old(
        services,
        created,
        [(project.lower(), body) for project, body in (root.get("entrypoints") or {}).items()],
        {name: found["ssh_private_key"] for name, found in (root.get("projects") or {}).items()},
        (root.get("config") or {}).get("acme_settings") or {},
    )


def _each(tree: Mapping[str, Mapping[str, Any]] | None) -> Iterator[tuple[str, str, Any]]:
    for project, entries in (tree or {}).items():
        for name, entry in entries.items():
            yield project, name, entry


# --- the older form ----------------------------------------------------------------------------


def _older(root: dict[str, Any], folder: Path, told: list[str]) -> _Old:
    store = root["store"]
    projects = {id_: name for name, ids in store.get("projects", {}).items() for id_ in ids}
    index = root.get("openai", {}).get("index", {})
    services: list[tuple[str, dict[str, Any], list[dict[str, Any]]]] = []
    created: dict[tuple[str, str], int] = {}
    for id_, service in store.get("services", {}).items():
        if id_ not in projects:
            told.append(f"service {service['domain']} is left out: it belongs to no project")
            continue
        project = projects[id_]
        body = {
            "client_max_body_size": _BODY_SIZE_BEFORE,
            "https": True,
            **service,
            "id": None,  # theirs were not those of runs
            "run_name": service["domain"].partition(".")[0],
        }
        model = service.get("options", {}).get("openai", {}).get("model")
        if model is not None:
            known = index.get(project, {}).get("chat", {}).get(model["name"])
            if known is None:  # they have lost some; so clients do not know it either
                body["options"] = {}
            else:
                created[project.lower(), model["name"]] = int(known["created"])
        replicas = [_older_replica(replica) for replica in service.get("replicas", ())]
        services.append((project.lower(), body, replicas))
    nginx = store.get("nginx", {})
    sites = [site for site in nginx.get("configs", {}).values() if site["type"] == "entrypoint"]
    owners = {domain: owner[0] for domain, owner in store.get("entrypoints", {}).items()}
    return _Old(
        services,
        created,
        [(owners[site["domain"]].lower(), site) for site in sites if site["domain"] in owners],
        _keys(store.get("projects", {}), folder, told),
        nginx.get("acme_settings") or {},
    )


def _older_replica(replica: dict[str, Any]) -> dict[str, Any]:
    body = {**replica, "job_id": replica["id"]}
    if (jump := replica.get("ssh_jump_host")) and replica.get("ssh_jump_port"):
        user, _, host = jump.rpartition("@")
        body["ssh_proxy"] = {"username": user, "hostname": host, "port": replica["ssh_jump_port"]}
    return body


def _keys(projects: Mapping[str, Any], folder: Path, told: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for project in projects:
        path = folder / Path(project).name
        try:
            found[project] = path.read_text()
        except (OSError, ValueError) as error:
            told.append(f"the ssh key of project {project} cannot be read: {path}: {error}")
    return found
