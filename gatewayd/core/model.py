"""The nouns of the gateway: services, replicas, endpoints and the policies they carry.

Owns: the shape of the values that cross every boundary (file -> state -> snapshot -> worker).
Does not own: how they are read (config), changed (control.registry) or used (proxy), where
certificates come from (core.certificate).
All values are immutable; durations are seconds, sizes are bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from gatewayd.core.certificate import FileCertificate
from gatewayd.core.entrypoint import OPENAI, ModelFormat
from gatewayd.core.frames import by_fields
from gatewayd.core.secret import Secret

Balance = Literal["least_requests", "round_robin", "random"]
RouterMode = Literal["auto", "steer", "through"]
Role = Literal["prefill", "decode", "regular"]
Origin = Literal["file", "api"]


class UnixAddress(NamedTuple):
    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


class TcpAddress(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


Address = UnixAddress | TcpAddress  # tuples: each request looks its pool up by one


@by_fields
@dataclass(frozen=True, slots=True)
class ReplicaRole:
    """What a replica does where prompts and answers are made by different ones. A prefill hands
    its results over at `bootstrap_port`; a regular one does both, and has no part in it."""

    name: Role
    bootstrap_port: int | None = None


@by_fields
@dataclass(frozen=True, slots=True)
class SshHop:
    """One ssh server on the way to a replica, and what proves us to it."""

    destination: str  # user@host
    port: int = 22
    key: Secret | None = None  # a private key's text
    identity: str | None = None  # or the file that holds it


@by_fields
@dataclass(frozen=True, slots=True)
class SshTunnel:
    """How a replica's port is reached: the outermost jump first, last its own ssh server."""

    hops: tuple[SshHop, ...]
    app_port: int


@by_fields
@dataclass(frozen=True, slots=True)
class Replica:
    """One running instance of a service, as registered. With a tunnel `address` is the tunnel's
    local socket."""

    id: str
    address: Address
    origin: Origin = "file"
    draining: bool = False  # takes no new request; removed when its last one ends
    internal_ip: str | None = None
    tunnel: SshTunnel | None = None

    @property
    def peer_host(self) -> str | None:
        """The host by which other replicas reach it, as a URL has it; None: they cannot."""
        host = self.internal_ip
        if host is None and isinstance(self.address, TcpAddress):
            host = self.address.host
        return f"[{host}]" if host is not None and ":" in host else host


@by_fields
@dataclass(frozen=True, slots=True)
class Timeouts:
    """Phases of one attempt; None is unlimited."""

    connect: float | None = 5.0
    first_byte: float | None = 600.0
    idle: float | None = 300.0
    total: float | None = None


@by_fields
@dataclass(frozen=True, slots=True)
class RateLimit:
    """nginx's `limit_req rate=<rps> burst=<burst> nodelay` for requests below `prefix`.

    `header` is None for the client's address, else the lower-case name of the key header.
    """

    prefix: str
    rps: float
    burst: int
    header: str | None = None


@by_fields
@dataclass(frozen=True, slots=True)
class Cors:
    """What browsers are told. `openai` in the file means every field at its default."""

    origins: tuple[str, ...] = ("*",)
    methods: tuple[str, ...] = ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD")
    headers: tuple[str, ...] = ("*",)
    max_age: int = 600
    credentials: bool = False


@by_fields
@dataclass(frozen=True, slots=True)
class RouterSpec:
    """Which router plug-in fronts a service's replicas, and how it is started."""

    type: str
    mode: RouterMode = "auto"
    policy: str | None = None  # None: the plug-in's default
    args: tuple[tuple[str, str | None], ...] = ()  # flag without dashes -> value; None: bare flag
    steer_timeout: float = 2.0  # s, for the router's decision; then the gateway's own
    steer_body_limit: int = 1024 * 1024  # larger bodies are not asked about
    routing_key_header: str | None = None  # the client's field that sticky policies go by
    pd_disaggregation: bool = False  # prompts and answers are made by different replicas

    def steers(self, traits: RouterTraits) -> bool:
        """Whether requests that the router can decide on go straight to the replica it chose."""
        # With two replicas for a request, only the router knows what to tell each of them.
        return self.mode != "through" and bool(traits.steer_paths) and not self.pd_disaggregation


@by_fields
@dataclass(frozen=True, slots=True)
class Hsts:
    """RFC 6797: browsers are to come by HTTPS only, for `max_age` seconds from each answer on."""

    max_age: int
    subdomains: bool = False
    preload: bool = False


@by_fields
@dataclass(frozen=True, slots=True)
class Service:
    """A registered application. `key` is its identity: `<project>/<name>`."""

    project: str
    name: str
    domains: tuple[str, ...]
    auth: bool = False
    model: str | None = None
    model_format: ModelFormat = OPENAI
    client_max_body_size: int = 64 * 1024 * 1024
    strip_prefix: str | None = None
    allowed_paths: tuple[str, ...] | None = None  # exact paths, and prefixes that end in `/`
    timeouts: Timeouts = Timeouts()
    balance: Balance = "least_requests"
    rate_limits: tuple[RateLimit, ...] = ()
    cors: Cors | None = None
    router: RouterSpec | None = None
    router_replica: bool = False  # its replicas are routers themselves
    replicas: tuple[Replica, ...] = ()
    debug_headers: bool = False  # answers name their replica
    https: bool = False  # plain HTTP is redirected
    hsts: Hsts | None = None
    certificate: FileCertificate | None = None  # its own; None: whichever covers its domains
    id: str | None = None  # what its control plane calls it
    origin: Origin = "file"

    @property
    def key(self) -> str:
        return f"{self.project}/{self.name}"


@by_fields
@dataclass(frozen=True, slots=True)
class Token:
    """An accepted bearer token: only its SHA-256 is kept."""

    name: str
    sha256: bytes


@dataclass(frozen=True, slots=True)
class TokensAuth:
    tokens: tuple[Token, ...]
    forward: bool = False  # whether replicas are sent the client's Authorization


@dataclass(frozen=True, slots=True)
class HttpAuth:
    """Ask an authority: 2xx is yes, 401/403 is no, anything else is "cannot tell"."""

    address: Address
    path: str  # path and query of the question
    cache: float = 60.0
    stale_if_error: float = 600.0
    timeout: float = 5.0
    forward: bool = False


@dataclass(frozen=True, slots=True)
class DstackAuth:
    """Ask a dstack server over one of the sockets in `server_connections_dir`."""

    server_connections_dir: str = "/home/ubuntu/dstack/server-connections"  # where it makes them
    cache: float = 60.0
    stale_if_error: float = 600.0
    timeout: float = 5.0
    forward: bool = False


Auth = TokensAuth | HttpAuth | DstackAuth


@dataclass(frozen=True, slots=True)
class Limits:
    """The edge's own bounds, per client connection."""

    request_line_size: int = 16 * 1024
    header_size: int = 32 * 1024
    headers: int = 100
    header_timeout: float = 10.0
    keepalive_timeout: float = 75.0
    body_idle_timeout: float = 60.0
    write_timeout: float = 60.0
    connections_per_ip: int = 0  # 0: no limit
    replica_wait: float = 10.0  # for a service whose first replica is on its way


@dataclass(frozen=True, slots=True)
class Log:
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"
    access: str = "stdout"  # stdout | off | file path


# --- what the control plane compiles for the data plane ----------------------------------------


@by_fields
@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address that an upstream is dialled by.

    `index` is its column in the shared table of requests in flight (net.loads), leased by
    control. `replica` is the id shown in metrics and the access log; a router's endpoint has
    none. `reuse_s` is how long an idle connection may carry a request that must not be
    repeated; 0 (an unknown server's keep-alive) opens a fresh one for each such request.
    """

    id: str
    address: Address
    index: int
    replica: str = ""
    reuse_s: float = 0.0


@by_fields
@dataclass(frozen=True, slots=True)
class PeerFields:
    """Of the bodies for a prefill and its decode: where they meet, by the host of the prefill's
    URL and its bootstrap port, and what names the meeting; lists of them in a batch."""

    host: str
    port: str
    room: str


@by_fields
@dataclass(frozen=True, slots=True)
class RouterTraits:
    """How the hop to a router differs from one to a replica; the plug-in says, neutral code obeys.

    Header names are lower-case bytes.
    """

    request_headers: tuple[tuple[bytes, bytes], ...] = ()  # added, e.g. the router's own key
    strip_request: frozenset[bytes] = frozenset()
    strip_request_prefixes: tuple[bytes, ...] = ()
    strip_response: frozenset[bytes] = frozenset()
    error_header: bytes = b""  # present on answers the router made itself
    unsent_errors: frozenset[bytes] = frozenset()  # of these, nothing has reached a replica
    token_header: bytes = b""  # a request header the router passes on to its target
    routing_key_header: bytes = b""  # what its sticky policies go by
    routing_key_always: bool = False  # without a client's key a request gets one of its own
    # POSTs that it can decide on without carrying them; it is asked over HTTP/2.
    steer_paths: frozenset[str] = frozenset()
    allowed_paths: tuple[str, ...] = ()  # default allow-list of a service behind it
    denied_paths: tuple[str, ...] = ()  # its own administration: never, whatever is allowed
    peer_fields: PeerFields | None = None  # where a request goes to two replicas


@by_fields
@dataclass(frozen=True, slots=True)
class Upstream:
    """What a service is dialled by: its replicas, or its router with the replicas as fall-back.

    `endpoints` are the replicas that take new requests. `router` is None without one, and also
    while it is down: then requests go straight to the replicas. `traits` are set for every
    service that asks for a router, whether it is up or not. `refusal` says why no request can be
    served now; empty when one can. `past_router`: a replica can serve a request that the router
    did not take. `coming`: there is no endpoint yet, but one is on its way.
    """

    endpoints: tuple[Endpoint, ...]
    balance: Balance = "least_requests"
    router: Endpoint | None = None
    traits: RouterTraits | None = None
    mode: Literal["direct", "through", "steer"] = field(default="direct")
    refusal: str = ""
    past_router: bool = True
    coming: bool = False
