"""What is exported, as values: of the gateway as a whole, and of each service.

Owns: their shape. Does not own: where they come from (control.status), how Prometheus reads them
(control.exposition).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from gatewayd.core.messages import ServiceTotals

REPLICA_STATES: Final = ("up", "draining", "connecting", "unreachable")


@dataclass(frozen=True, slots=True)
class RouterSample:
    up: bool
    restarts: int


@dataclass(frozen=True, slots=True)
class ServiceSample:
    """One service at one moment, named as labels name it; "" is what belongs to none."""

    name: str
    totals: ServiceTotals
    in_flight: Sequence[tuple[str, int]] = ()  # replica, requests
    replicas: Mapping[str, int] | None = None  # state -> count
    router: RouterSample | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """The gateway at one moment. `services` may be made while it is iterated over, each then as it
    is when its turn comes."""

    services: Iterable[ServiceSample]
    workers: int
    worker_restarts: int
    connections: int
    log_lines_dropped: int = 0
    handshakes_held: Mapping[str, int] = field(default_factory=dict)  # how it ended -> count
    reloads: Mapping[str, int] = field(default_factory=dict)
    certificates: Mapping[str, float] = field(default_factory=dict)  # domain -> its end
