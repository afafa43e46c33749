"""The keys of the edge: listeners, ports, logs, bounds.

Owns: their raw shape. Does not own: the other keys (config.schema).
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from gatewayd.config.errors import BadTableError
from gatewayd.config.leaf import ONE_OR_LIST, one_of
from gatewayd.config.model import Ports
from gatewayd.config.numbers import Count, CountAboveZero, Duration, DurationOrZero, Size
from gatewayd.config.table import MAY_BE_NULL, Table
from gatewayd.config.values import parse_address, parse_listen_address
from gatewayd.config.words import (
    AccessLog,
    BoundAddress,
    OptionalAddress,
    OwnAddress,
    PortSpan,
)
from gatewayd.core.demand import Count as Demanded
from gatewayd.core.model import Limits, Log

_LIMITS = Limits()
_LOG = Log()
_PORTS = Ports()


class ListenTable(Table, json_schema_extra=MAY_BE_NULL):
    """Where the gateway listens."""

    place: ClassVar[str] = "listen"

    http: Annotated[list[BoundAddress], ONE_OR_LIST] = Field(
        default_factory=lambda: [parse_listen_address("0.0.0.0:8080")],
        json_schema_extra={"default": ["0.0.0.0:8080"]},
    )
    """host:port, unix:/path or fd:NAME (a systemd socket); one or a list."""
    https: Annotated[list[BoundAddress], ONE_OR_LIST] | None = None
    """The same with TLS; default: 0.0.0.0:8443 when there is a certificate."""
    admin: OwnAddress = Field(
        default_factory=lambda: parse_address("127.0.0.1:8000"),
        json_schema_extra={"default": "127.0.0.1:8000"},
    )
    """Registry, status and metrics; not for tenants. host:port, unix:/path or fd:NAME."""
    metrics: OptionalAddress = None
    """A separate address for /metrics, /healthz and /readyz only."""

    @model_validator(mode="after")
    def _somewhere(self) -> ListenTable:
        if not self.http:
            raise BadTableError("expected at least one address", keys=("http",), at="http")
        return self


class PortsTable(Table, json_schema_extra=MAY_BE_NULL):
    """Loopback ports that the gateway takes for itself when a service has a router."""

    place: ClassVar[str] = "ports"

    bridge: PortSpan = Field(default=_PORTS.bridge, json_schema_extra={"default": "10001-11999"})
    """One for each replica."""
    router: PortSpan = Field(default=_PORTS.router, json_schema_extra={"default": "20000-24999"})
    """One for each router; its metrics port lies 10000 above."""


class LogTable(Table, json_schema_extra=MAY_BE_NULL):
    place: ClassVar[str] = "log"

    level: Annotated[
        Literal["debug", "info", "warning", "error"], one_of("debug", "info", "warning", "error")
    ] = _LOG.level
    format: Annotated[Literal["text", "json"], one_of("text", "json")] = _LOG.format
    access: AccessLog = _LOG.access
    """stdout, off, or the path of a file (reopened on SIGUSR1)."""


class LimitsTable(Table, json_schema_extra=MAY_BE_NULL):
    """The edge's own bounds."""

    place: ClassVar[str] = "limits"

    request_line_size: Size = _LIMITS.request_line_size
    header_size: Size = _LIMITS.header_size
    headers: CountAboveZero = _LIMITS.headers
    header_timeout: Duration = _LIMITS.header_timeout
    keepalive_timeout: Duration = _LIMITS.keepalive_timeout
    body_idle_timeout: Duration = _LIMITS.body_idle_timeout
    write_timeout: Duration = _LIMITS.write_timeout
    connections_per_ip: Count = _LIMITS.connections_per_ip
    """0: no limit."""
    replica_wait: DurationOrZero = _LIMITS.replica_wait
    """How long requests wait for a service whose tunnels are still opening; 0: not at all."""


class StatsTable(Table, json_schema_extra=MAY_BE_NULL):
    """What is told to whoever scales services."""

    place: ClassVar[str] = "stats"

    count: Annotated[Demanded, one_of("running", "finished", "started")] = "running"
    """Which requests count in a window: those that ran in it, ended in it, or began in it."""
