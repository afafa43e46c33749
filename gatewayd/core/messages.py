"""What control and its data-plane processes (workers, the bridge) say to each other.

Owns: the frames. Does not own: how they travel (net.channel).

Control -> process: `Configure` once, then `Certificates`, `Challenges`, `Expected`, `Publish`,
`Link`, `ReopenLogs`, at last `Drain`. Process -> control: `Ready` once, an `Ack` for each frame
with a version, a `Report` once a second if there is something new.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gatewayd.core.frames import by_fields
from gatewayd.core.model import Limits, Log
from gatewayd.core.packing import PackedSnapshot
from gatewayd.core.snapshot import BridgeSnapshot


@dataclass(frozen=True, slots=True)
class ListenerSpec:
    """One descriptor that came with a `Configure`."""

    name: str  # as the operator wrote it
    kind: str  # "tcp" | "unix"
    tls: bool = False


@dataclass(frozen=True, slots=True)
class Configure:
    """The first frame. Descriptors travel beside it in this order: the load table, the bucket
    and the demand table (workers only), then one per entry of `listeners`."""

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

    snapshot: PackedSnapshot | BridgeSnapshot
    new_ports: tuple[int, ...] = ()


@by_fields
@dataclass(frozen=True, slots=True)
class CertificatePair:
    """A certificate with its chain, and its private key, as PEM. `names` are what it is served
    for: lower case, exact or `*.` and the rest."""

    names: tuple[str, ...]
    chain: bytes
    key: bytes = field(repr=False)


@by_fields
@dataclass(frozen=True, slots=True)
class Certificates:
    """All certificates, for workers; latest wins, and new handshakes use them. `default` is one
    of their names: whose certificate a client gets that names none, or one that is not served."""

    version: int
    pairs: tuple[CertificatePair, ...]
    default: str | None = None


@by_fields
@dataclass(frozen=True, slots=True)
class Challenges:
    """What an ACME authority is to find at the workers (RFC 8555, 8.3; RFC 8737); latest wins.
    `alpn`: by the name that is to be proven, its challenge certificate."""

    version: int
    http01: Mapping[str, str] = field(default_factory=dict)  # token -> key authorization
    alpn: Mapping[str, CertificatePair] = field(default_factory=dict)


@by_fields
@dataclass(frozen=True, slots=True)
class Expected:
    """Names of ours that no certificate is for yet; latest wins. `coming`: one is asked for now.
    `paused`: asking failed, and a client that comes is worth another try (`Report.sighted`)."""

    version: int
    coming: frozenset[str] = frozenset()
    paused: frozenset[str] = frozenset()


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


@by_fields
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
    auth_stale: int = 0  # let through by an old word of an authority that does not answer
    log_lines_dropped: int = 0  # of the whole process, so only under ""
    handshakes_held: dict[str, int] = field(default_factory=dict)  # how it ended; only under ""


@by_fields
@dataclass(frozen=True, slots=True)
class Report:
    """Once a second, unless there is nothing that the last one did not tell. `totals` holds the
    services that changed since then, keyed by `Service.key`; "" is what belongs to no service (404,
    malformed)."""

    slot: int
    incarnation: int
    totals: dict[str, ServiceTotals]
    connections: int  # open client connections now
    unreachable: tuple[str, ...] = ()  # ids of endpoints that refused a connection since the last
    sighted: tuple[str, ...] = ()  # names of `Expected.paused` that a client came for since


ForHandshakes = Certificates | Challenges | Expected
Published = Publish | ForHandshakes
Message = Configure | Published | Link | Drain | ReopenLogs | Ready | Ack | Report
