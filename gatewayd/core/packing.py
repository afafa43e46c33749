"""A snapshot on its way to the workers: whole, and yet made and read only where it differs.

Owns: its parts as bytes, and what each side remembers of the last one. Does not own: delivery
(control.publisher), what a snapshot says (core.snapshot).

A registration changes one service. Of 500 with four replicas each, pickling all took control 6 ms
for each worker, and reading them 6 ms of the loop that carries streams. A service that is as it was
is the same bytes, and so the same object.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace

from gatewayd.core.entrypoint import ModelFormat
from gatewayd.core.frames import by_fields
from gatewayd.core.snapshot import EntrypointTarget, ModelTarget, Snapshot, Target

_Model = tuple[str, int, ModelFormat, int]  # ModelTarget, by the number of its target


@by_fields
@dataclass(frozen=True, slots=True)
class PackedSnapshot:
    version: int
    targets: tuple[bytes, ...]
    hosts: tuple[tuple[str, int], ...]  # host -> number of its target
    models: tuple[tuple[str, tuple[_Model, ...]], ...]  # by the host of their entrypoint
    rest: Snapshot  # without targets, and with entrypoints that have no models


class Packer:
    """Of one control. Targets that were packed last time are not packed again."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Target, bytes]] = {}  # by identity, which the value keeps

    def pack(self, snapshot: Snapshot) -> PackedSnapshot:
        known: dict[int, tuple[Target, bytes]] = {}
        numbers: dict[int, int] = {}
        for target in snapshot.targets.values():
            if id(target) not in known:
                numbers[id(target)] = len(known)
                known[id(target)] = self._known.get(id(target)) or (target, _pickled(target))
        self._known = known
        return PackedSnapshot(
            version=snapshot.version,
            targets=tuple(packed for _, packed in known.values()),
            hosts=tuple((host, numbers[id(target)]) for host, target in snapshot.targets.items()),
            models=tuple(
                (
                    host,
                    tuple((m.name, m.created, m.format, numbers[id(m.target)]) for m in e.models),
                )
                for host, e in snapshot.entrypoints.items()
            ),
            rest=replace(
                snapshot,
                targets={},
                entrypoints={h: replace(e, models=()) for h, e in snapshot.entrypoints.items()},
            ),
        )


class Unpacker:
    """Of one worker."""

    def __init__(self) -> None:
        self._known: dict[bytes, Target] = {}

    def unpack(self, packed: PackedSnapshot) -> Snapshot:
        known = {data: self._known.get(data) or _target(data) for data in packed.targets}
        self._known = known
        targets = [known[data] for data in packed.targets]
        entrypoints: Mapping[str, EntrypointTarget] = {
            host: replace(
                packed.rest.entrypoints[host],
                models=tuple(
                    ModelTarget(name, created, form, targets[number])
                    for name, created, form, number in models
                ),
            )
            for host, models in packed.models
        }
        return replace(
            packed.rest,
            targets={host: targets[number] for host, number in packed.hosts},
            entrypoints=entrypoints,
        )


def _pickled(target: Target) -> bytes:
    return pickle.dumps(target, protocol=pickle.HIGHEST_PROTOCOL)


def _target(data: bytes) -> Target:
    target = pickle.loads(data)  # noqa: S301 - of our own control, as is the frame around it
    assert isinstance(target, Target)
    return target
