"""The keys of the edge: listeners, ports, logs, bounds, certificates.

Owns: their raw shape. Does not own: the other keys (config.schema).
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic.json_schema import SkipJsonSchema

from gatewayd.config.errors import BadTableError, BadValueError
from gatewayd.config.leaf import ONE_OR_LIST, one_of, or_null, text_leaf
from gatewayd.config.model import Ports
from gatewayd.config.numbers import Count, CountAboveZero, Duration, Size
from gatewayd.config.table import MAY_BE_NULL, Table, by_type
from gatewayd.config.values import parse_address, parse_listen_address
from gatewayd.config.words import (
    AccessLog,
    AdminAddress,
    BoundAddress,
    Domain,
    OptionalAddress,
    OptionalPath,
    OptionalText,
    Path,
    PortSpan,
    Token,
)
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
    https: Annotated[list[BoundAddress], ONE_OR_LIST] = Field(default_factory=list)
    admin: AdminAddress = Field(
        default_factory=lambda: parse_address("127.0.0.1:8000"),
        json_schema_extra={"default": "127.0.0.1:8000"},
    )
    """Registry, status and metrics; not for tenants."""
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


# --- certificates ------------------------------------------------------------------------------


def _directory_url(text: str) -> str:
    if not text.startswith(("https://", "http://")):
        raise BadValueError("expected the URL of an ACME directory")
    return text


class FileCertificateTable(Table):
    """A certificate that somebody else keeps current."""

    place: ClassVar[str] = "certificate"

    type: Literal["file"]
    cert: Path
    key: Path


class LetsEncryptTable(Table):
    """Certificates from Let's Encrypt."""

    place: ClassVar[str] = "certificate"

    type: Literal["lets-encrypt"]
    email: OptionalText = None
    eab_kid: OptionalText = None
    eab_hmac_key: Token | None = None
    challenges: Annotated[
        list[Annotated[str, one_of("http-01", "tls-alpn-01", "dns-01")]], ONE_OR_LIST
    ] = ["http-01", "tls-alpn-01"]  # noqa: RUF012 -- pydantic copies it
    dns_hook: OptionalPath = None
    names: Annotated[list[Domain], ONE_OR_LIST] = Field(default_factory=list)

    @model_validator(mode="after")
    def _whole_binding(self) -> LetsEncryptTable:
        if (self.eab_kid is None) != (self.eab_hmac_key is None):
            raise BadTableError(
                "`eab_kid` and `eab_hmac_key` belong together", keys=("eab_kid", "eab_hmac_key")
            )
        return self


class AcmeTable(LetsEncryptTable):
    """Certificates from an ACME authority; several servers in order of preference."""

    type: Literal["acme"]  # type: ignore[assignment]
    server: Annotated[
        list[Annotated[str, text_leaf(_directory_url, "expected the URL of an ACME directory")]],
        ONE_OR_LIST,
    ]
    ca_file: OptionalPath = None
    """What the authority's own HTTPS is checked against."""


class OtherCertificateTable(Table, extra="ignore"):
    type: Annotated[str, one_of("file", "acme", "lets-encrypt")]


CertificateEntry = Annotated[
    Annotated[
        str | None,
        or_null(one_of("lets-encrypt", also="a table with the key `type`")),
        Tag("<text>"),
    ]
    | Annotated[FileCertificateTable, Tag("<file>")]
    | Annotated[LetsEncryptTable, Tag("<lets-encrypt>")]
    | Annotated[AcmeTable, Tag("<acme>")]
    | SkipJsonSchema[Annotated[OtherCertificateTable, Tag("<other>")]],
    Discriminator(by_type("file", "acme", "lets-encrypt")),
]
