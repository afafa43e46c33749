"""The keys of a service: replicas, limits, time-outs, its router.

Owns: the raw shape of `services[]` and of `router`. Does not own: the rest of the file
(config.schema), what follows from several keys together (config.convert).
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from gatewayd.config.errors import BadTableError, BadValueError
from gatewayd.config.leaf import (
    LIST,
    ONE_OR_LIST,
    Leaf,
    one_of,
    or_null,
    string,
)
from gatewayd.config.numbers import (
    Bool,
    Count,
    Duration,
    DurationOrZero,
    OptionalBool,
    OptionalDuration,
    Port,
    Rate,
    Size,
)
from gatewayd.config.schema_certificate import HstsEntry, HttpsKey, OwnCertificateEntry
from gatewayd.config.schema_models import ModelKey
from gatewayd.config.table import MAY_BE_NULL, Table, text_or_table
from gatewayd.config.values import did_you_mean
from gatewayd.config.words import (
    ROUTER_NAME,
    Domain,
    HeaderName,
    Method,
    OptionalPath,
    OptionalPrefix,
    OptionalText,
    Origin,
    Prefix,
    ReplicaId,
    ReplicaText,
    ReplicaUrl,
    ServiceName,
    SocketPath,
    SshHost,
    router_or_null,
)
from gatewayd.core.model import Balance, Cors, RouterMode, RouterSpec, Service, Timeouts

_TIMEOUTS = Timeouts()
_CORS = Cors()
_SERVICE = Service(project="", name="", domains=())
_ROUTER = RouterSpec("")


# --- router ------------------------------------------------------------------------------------


def _arg_name(value: object) -> str:
    name = string(value)
    if name.startswith("-"):
        raise BadValueError(
            "a flag stands here without its dashes",
            suggestion=did_you_mean(name.lstrip("-")),
            show_found=False,
        )
    return name


def _arg_value(value: object) -> str | int | float | bool | None:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str) and value.isprintable():
        return str(value)
    raise BadValueError("expected a string, a number, true, false or null")


class RouterTable(Table):
    """Which router stands in front of the replicas, and how it is started."""

    place: ClassVar[str] = "router"

    type: Annotated[str, ROUTER_NAME]
    """The name of an installed router."""
    mode: Annotated[RouterMode, one_of("auto", "through", "steer")] = "auto"
    """`through`: the bytes pass the router; `steer`: it only decides."""
    policy: OptionalText = None
    """One of the router's own policies; its default when null."""
    steer_timeout: Duration = _ROUTER.steer_timeout
    """How long a request waits for the router's decision before the gateway takes its own."""
    steer_body_limit: Size = _ROUTER.steer_body_limit
    """Larger bodies are not asked about: they go to a replica of the gateway's choice."""
    routing_key_header: HeaderName | None = None
    """The client's field that the router's sticky policies go by."""
    pd_disaggregation: Bool = False
    """Prompts and answers are made by different replicas, which tell themselves what they do."""
    args: Annotated[
        dict[
            Annotated[str, Leaf(_arg_name, {"type": "string"})],
            Annotated[
                str | int | float | bool | None,
                Leaf(_arg_value, {"type": ["string", "number", "boolean", "null"]}),
            ],
        ],
        BeforeValidator(lambda value: {} if value is None else value),
    ] = Field(default_factory=dict)
    """More flags of the router's command line: `key: value` is `--key value`; true or null is
    the bare flag, false leaves it out."""


RouterEntry = Annotated[
    Annotated[
        str | None,
        Leaf(router_or_null, {"type": ["string", "null"]}),
        Tag("<text>"),
    ]
    | Annotated[RouterTable, Tag("<table>")],
    Discriminator(text_or_table),
]


# --- replicas ----------------------------------------------------------------------------------


class SshProxyTable(Table):
    """An ssh server on the way to a replica's."""

    place: ClassVar[str] = "services[].replicas[].ssh.proxy[]"

    host: SshHost
    port: Port = 22
    identity: OptionalPath = None
    """The private key's file; default: the keys of the user that gatewayd runs as."""


class SshTable(Table):
    """A replica behind an ssh server."""

    place: ClassVar[str] = "services[].replicas[].ssh"

    host: SshHost
    port: Port = 22
    app_port: Port
    """The port the replica listens on over there."""
    identity: OptionalPath = None
    """The private key's file; default: the keys of the user that gatewayd runs as."""
    proxy: Annotated[list[SshProxyTable], LIST] = Field(default_factory=list)
    """Jump hosts, the one that is connected to first."""


class ReplicaTable(Table):
    """A replica: an id and one of `socket`, `url`, `ssh`."""

    place: ClassVar[str] = "services[].replicas[]"

    id: ReplicaId | None = None
    """Shown in metrics and logs; default: a short stable hash of the address."""
    socket: SocketPath | None = None
    url: ReplicaUrl | None = None
    ssh: SshTable | None = None

    @model_validator(mode="after")
    def _one_address(self) -> ReplicaTable:
        if sum(each is not None for each in (self.socket, self.url, self.ssh)) != 1:
            raise BadTableError(
                "a replica has exactly one of `socket`, `url` and `ssh`",
                keys=("socket", "url", "ssh"),
            )
        return self


ReplicaEntry = Annotated[
    Annotated[ReplicaText, Tag("<text>")] | Annotated[ReplicaTable, Tag("<table>")],
    Discriminator(text_or_table),
]


# --- the rest of a service ---------------------------------------------------------------------


class KeyTable(Table):
    """Who shares a rate limit."""

    place: ClassVar[str] = "services[].rate_limits[].key"

    type: Annotated[Literal["ip_address", "header"], one_of("ip_address", "header")]
    header: HeaderName | None = None

    @model_validator(mode="after")
    def _header_when_it_counts(self) -> KeyTable:
        if self.type == "header" and self.header is None:
            raise BadTableError("`type: header` needs the key `header`", keys=("type", "header"))
        if self.type == "ip_address" and self.header is not None:
            raise BadTableError(
                "`header` means nothing with `type: ip_address`",
                keys=("type", "header"),
                at="header",
            )
        return self


class RateLimitTable(Table):
    """A leaky bucket: `rps` requests a second, and `burst` more at once."""

    place: ClassVar[str] = "services[].rate_limits[]"

    prefix: Prefix = "/"
    rps: Rate
    burst: Count = 0
    key: KeyTable = KeyTable(type="ip_address")


class CorsTable(Table):
    """What browsers are told about pages of other origins."""

    place: ClassVar[str] = "services[].cors"

    origins: Annotated[list[Origin], ONE_OR_LIST] = Field(
        default_factory=lambda: list(_CORS.origins)
    )
    methods: Annotated[list[Method], ONE_OR_LIST] = Field(
        default_factory=lambda: list(_CORS.methods)
    )
    headers: Annotated[list[HeaderName], ONE_OR_LIST] = Field(
        default_factory=lambda: list(_CORS.headers)
    )
    max_age: DurationOrZero = _CORS.max_age
    credentials: Bool = _CORS.credentials

    @model_validator(mode="after")
    def _named_origins(self) -> CorsTable:
        if not self.origins:
            raise BadTableError("expected at least one origin", keys=("origins",), at="origins")
        if self.credentials and "*" in self.origins:
            raise BadTableError(
                "credentials are not for every origin: name the origins",
                keys=("credentials", "origins"),
                at="credentials",
            )
        return self


CorsEntry = Annotated[
    Annotated[Literal["openai"] | None, or_null(one_of("openai", also="a table")), Tag("<text>")]
    | Annotated[CorsTable, Tag("<table>")],
    Discriminator(text_or_table),
]


class TimeoutsTable(Table, json_schema_extra=MAY_BE_NULL):
    """The phases of one attempt; null is unlimited."""

    place: ClassVar[str] = "services[].timeouts"

    connect: OptionalDuration = _TIMEOUTS.connect
    first_byte: OptionalDuration = _TIMEOUTS.first_byte
    idle: OptionalDuration = _TIMEOUTS.idle
    total: OptionalDuration = _TIMEOUTS.total


class ServiceTable(Table):
    """An application and its replicas."""

    place: ClassVar[str] = "services[]"

    name: ServiceName
    """A DNS label, once per file."""
    domain: Annotated[list[Domain], ONE_OR_LIST] = Field(default_factory=list)
    """Where it answers: one or several; default <name>.<domain of the gateway>."""
    https: HttpsKey = Field(default=None, json_schema_extra={"default": "auto"})
    """Whether plain HTTP is redirected; auto: when a certificate covers its domains."""
    certificate: OwnCertificateEntry = None
    """Its own; null: whichever of the top covers its domains."""
    hsts: HstsEntry = None
    """How long browsers are to come by HTTPS only; null does not tell them."""
    auth: OptionalBool = None
    """Default: true when `auth` is configured at the top."""
    router: RouterEntry = None
    """null: none; default: the `router` of the top."""
    router_replica: Bool = False
    """Its replicas are routers themselves: of them only inference is served."""
    model: ModelKey = None
    """The model served under this name, OpenAI-compatible, or a table."""
    client_max_body_size: Size = _SERVICE.client_max_body_size
    strip_prefix: OptionalPrefix = None
    """Cut from the beginning of the path before a replica sees it."""
    allowed_paths: list[Prefix] | None = None
    """Exact paths, and prefixes that end in `/`; null: all, or the router's own list."""
    timeouts: TimeoutsTable = TimeoutsTable()
    balance: Annotated[Balance, one_of("least_requests", "round_robin", "random")] = (
        _SERVICE.balance
    )
    """Only without a router."""
    debug_headers: OptionalBool = None
    """Answers name their replica in X-Gatewayd-Replica; default: the top's."""
    rate_limits: Annotated[list[RateLimitTable], LIST] = Field(default_factory=list)
    cors: CorsEntry = None
    replicas: Annotated[list[ReplicaEntry], LIST] = Field(default_factory=list)
