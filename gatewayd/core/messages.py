"""What control and its data-plane processes (workers, the bridge) say to each other.

Owns: the frames. Does not own: how they travel (net.channel).

Control -> process: `Configure` once, then `Publish`, `Link`, `ReopenLogs`, at last `Drain`.
Process -> control: `Ready` once, an `Ack` for each `Publish`, a `Report` once a second.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gatewayd.core.model import Limits, Log
from gatewayd.core.snapshot import BridgeSnapshot, Snapshot


@dataclass(frozen=True, slots=True)
class ListenerSpec:
    """One descriptor that came with a `Configure`."""

    name: str  # as the operator wrote it
    kind: str  # "tcp" | "unix"


@dataclass(frozen=True, slots=True)
class Configure:
    """The first frame. Descriptors travel beside it in this order: the load table, the bucket
    table (workers only), then one per entry of `listeners`."""

    slot: int  # row in the load table
    slots: int  # rows in the load table
    incarnation: int  # counts the processes that have held this slot
    limits: Limits
    log: Log
    listeners: tuple[ListenerSpec, ...] = ()


@dataclass(frozen=True, slots=True)
class Publish:
    """A whole snapshot; latest wins. For the bridge, descriptors of new ports travel beside it
    in the order of `new_ports`."""

    snapshot: Snapshot | BridgeSnapshot
    new_ports: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Drain:
    """Accept nothing more, finish what runs within `timeout` seconds, then exit 0."""

    timeout: float


@dataclass(frozen=True, slots=True)
class Link:
    """One end of a link between the bridge and a worker travels beside it. `slot` is the other
    side's; a new link for a slot ends the old one."""

    slot: int


@dataclass(frozen=True, slots=True)
class ReopenLogs:
    pass


@dataclass(frozen=True, slots=True)
class Ready:
    pid: int


@dataclass(frozen=True, slots=True)
class Ack:
    version: int


@dataclass(slots=True)
class ServiceTotals:
    """Cumulative since the process began. Histograms: a count per bound of core.stats, and +Inf."""

    codes: dict[int, int] = field(default_factory=dict)
    duration_buckets: list[int] = field(default_factory=list)
    duration_sum: float = 0.0
    ttfb_buckets: list[int] = field(default_factory=list)
    ttfb_sum: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0
    rejections: dict[str, int] = field(default_factory=dict)  # reason -> count
    upstream_errors: dict[tuple[str, str], int] = field(default_factory=dict)  # (replica, kind)
    retries: int = 0
    ways: dict[str, int] = field(default_factory=dict)  # direct, through, steered, fallback
    steering: dict[str, int] = field(default_factory=dict)  # outcome of asking a router -> count
    log_lines_dropped: int = 0  # of the whole process, so only under ""


@dataclass(frozen=True, slots=True)
class Report:
    """Once a second, also the heartbeat. `totals` holds the services that changed since the
    last report, keyed by `Service.key`; "" is what belongs to no service (404, malformed)."""

    slot: int
    incarnation: int
    totals: dict[str, ServiceTotals]
    connections: int  # open client connections now
    unreachable: tuple[str, ...] = ()  # ids of endpoints that refused a connection since the last


Message = Configure | Publish | Link | Drain | ReopenLogs | Ready | Ack | Report
