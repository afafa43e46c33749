"""The registered state as JSON: our own schema, versioned, read piece by piece.

Owns: the form. Does not own: which values (control.saved), the files (control.store).

Private keys stand once, under a digest of theirs: two thousand replicas share a project's. What a
newer release of the same version adds is ignored; a piece that cannot be read costs that piece.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from gatewayd.control.saved import Saved
from gatewayd.control.state import AcmeSettings
from gatewayd.core.entrypoint import Entrypoint, ModelEntry
from gatewayd.core.model import Replica, Service
from gatewayd.core.secret import Secret

FORMAT: Final = "gatewayd registry"
VERSION: Final = 1

_T = TypeVar("_T")
# Lists, because a dataclass takes its configuration only from what it stands in. A Secret is
# checked to be one, and is made and unmade here.
_CONFIG: Final = ConfigDict(arbitrary_types_allowed=True)
_SERVICES: Final = TypeAdapter(list[Service], config=_CONFIG)
_REPLICAS: Final = TypeAdapter(list[Replica], config=_CONFIG)
_ENTRYPOINTS: Final = TypeAdapter(list[Entrypoint], config=_CONFIG)
_MODELS: Final = TypeAdapter(list[ModelEntry], config=_CONFIG)
_ACME: Final = TypeAdapter(list[AcmeSettings], config=_CONFIG)


class UnreadableError(Exception):
    """Nothing can be read of it; the text says why."""


class Encoder:
    """Remembers what each service was encoded to: a change is of one, and there may be hundreds."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Service, str, dict[str, str]]] = {}

    def encode(self, saved: Saved) -> bytes:
        services = {key: self._service(key, service) for key, service in saved.services.items()}
        self._known = services
        keys: dict[str, str] = {}
        for _, _, used in services.values():
            keys.update(used)
        rest = json.dumps(
            {
                "added": {
                    key: _REPLICAS.dump_python(list(replicas))
                    for key, replicas in saved.added.items()
                },
                "entrypoints": _ENTRYPOINTS.dump_python(list(saved.entrypoints.values())),
                "models": _MODELS.dump_python(list(saved.models.values())),
                "projects": dict(saved.keys),
                "acme": _ACME.dump_python([] if saved.acme is None else [saved.acme]),
            },
            default=lambda value: _note(value, keys),
        )
        head = json.dumps({"format": FORMAT, "version": VERSION, "keys": keys})
        texts = ",\n".join(text for _, text, _ in services.values())
        return f'{head[:-1]},\n"services": [\n{texts}\n],\n{rest[1:]}\n'.encode()

    def _service(self, key: str, service: Service) -> tuple[Service, str, dict[str, str]]:
        known = self._known.get(key)
        if known is not None and known[0] is service:
            return known
        used: dict[str, str] = {}
        value = _SERVICES.dump_python([service])[0]
        return service, json.dumps(value, default=lambda value: _note(value, used)), used


def _note(value: object, keys: dict[str, str]) -> dict[str, str]:
    """A secret is a reference to its text in `keys`."""
    if not isinstance(value, Secret):
        raise TypeError(type(value).__name__)
    text = value.reveal()
    digest = hashlib.sha256(text.encode()).hexdigest()[:32]
    keys[digest] = text
    return {"key": digest}


def decode(data: bytes) -> tuple[Saved, list[str]]:
    """Everything that can be read, and a line for each piece that cannot. UnreadableError when
    nothing can."""
    root = _root(data)
    faults: list[str] = []
    keys = root.get("keys")
    pieces = _Pieces(keys if isinstance(keys, dict) else {}, faults)
    services = pieces.each("services", root["services"], _SERVICES)
    entrypoints = pieces.each("entrypoints", root.get("entrypoints"), _ENTRYPOINTS)
    models = pieces.each("models", root.get("models"), _MODELS)
    acme = pieces.each("acme", root.get("acme"), _ACME)
    added = root.get("added")
    projects = root.get("projects")
    saved = Saved(
        services={service.key: service for service in services if service.origin == "api"},
        added={
            str(key): tuple(pieces.each(f"added.{key}", replicas, _REPLICAS))
            for key, replicas in (added if isinstance(added, dict) else {}).items()
        },
        entrypoints={entrypoint.project: entrypoint for entrypoint in entrypoints},
        models={(model.project, model.name): model for model in models},
        keys=pieces.secrets(projects if isinstance(projects, dict) else {}),
        acme=acme[0] if acme else None,
    )
    return saved, faults


def _root(data: bytes) -> dict[str, Any]:
    try:
        root = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"not JSON: {error}" if data else "empty") from error
    if not isinstance(root, dict) or root.get("format") != FORMAT:
        raise UnreadableError("not a state of gatewayd's registry")
    if root.get("version") != VERSION:
        raise UnreadableError(
            f"its version is {str(root.get('version'))[:20]}, this gatewayd reads {VERSION}"
        )
    if not isinstance(root.get("services"), list):
        raise UnreadableError("it has no list of services")
    return root


class _Pieces:
    def __init__(self, keys: Mapping[str, Any], faults: list[str]) -> None:
        self._keys = keys
        self._faults = faults

    def each(self, name: str, values: object, adapter: TypeAdapter[list[_T]]) -> list[_T]:
        if not isinstance(values, list):
            self._faults.append(f"{name}: not a list")
            return []
        found: list[_T] = []
        for i, value in enumerate(values):
            try:
                found += adapter.validate_python([_revealed(value, self._secret)])
            except ValidationError as error:
                first = error.errors()[0]
                at = ".".join(str(part) for part in first["loc"][1:])
                self._faults.append(f"{name}[{i}] {at}: {first['msg']}")
            except (KeyError, TypeError):
                self._faults.append(f"{name}[{i}]: a private key of it is not there")
        return found

    def secrets(self, projects: Mapping[str, Any]) -> dict[str, Secret]:
        found: dict[str, Secret] = {}
        for project, reference in projects.items():
            try:
                found[project] = self._secret(reference)
            except (KeyError, TypeError):
                self._faults.append(f"projects.{project}: its key is not there")
        return found

    def _secret(self, reference: Mapping[str, Any]) -> Secret:
        text = self._keys[reference["key"]]
        if not isinstance(text, str):
            raise TypeError("a key that is no text")
        return Secret(text)


def _revealed(value: Any, secret: Callable[[Mapping[str, Any]], Secret]) -> Any:
    """References replaced by the secrets that they stand for."""
    if isinstance(value, dict):
        if value.keys() == {"key"} and isinstance(value["key"], str):
            return secret(value)
        return {name: _revealed(entry, secret) for name, entry in value.items()}
    if isinstance(value, list):
        return [_revealed(entry, secret) for entry in value]
    return value
