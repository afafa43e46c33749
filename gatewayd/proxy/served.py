"""A service as one process serves it: the snapshot's target made ready, beside its live state.

Owns: what can be computed once per snapshot so that no request does it; live state that
survives snapshots (ejections, the rotation of round robin).
Does not own: the decisions (core), the path of a request (handler, forward).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from gatewayd.core import http2
from gatewayd.core import reply as replies
from gatewayd.core.balancer import Ejections, pick
from gatewayd.core.model import Cors, Endpoint, Hsts, RouterTraits
from gatewayd.core.snapshot import Target
from gatewayd.proxy.observe import Meter

if TYPE_CHECKING:
    from gatewayd.proxy.exchange import Exchange
    from gatewayd.proxy.plane import Plane

_CORS_FIELDS = frozenset(
    (
        b"access-control-allow-origin",
        b"access-control-allow-methods",
        b"access-control-allow-headers",
        b"access-control-allow-credentials",
        b"access-control-max-age",
    )
)
_NO_TRAITS = RouterTraits()
_NONE: frozenset[str] = frozenset()


class Live:
    """State of one service in this process that a new snapshot does not touch."""

    __slots__ = ("ask_after", "ejections", "meter", "served", "turn")

    def __init__(self, meter: Meter) -> None:
        self.served: Served | None = None  # the newest
        self.meter = meter
        self.ejections = Ejections()
        self.ask_after = 0.0  # loop time until which its router is not asked
        self.turn = 0


class Served:
    """Immutable but for `live`; an exchange keeps the one it began with."""

    __slots__ = (
        "allowed_paths",
        "by_path",
        "column",
        "coming",
        "cors",
        "debug_headers",
        "denied_paths",
        "forward_auth",
        "from_bridge",
        "hsts",
        "https",
        "key",
        "label",
        "limits",
        "live",
        "max_body_size",
        "meter",
        "openai_errors",
        "questions",
        "refuse_redirects",
        "router",
        "router_lines",
        "router_strip",
        "routing_key",
        "service",
        "steer_body_limit",
        "steer_paths",
        "steer_timeout",
        "strip_response",
        "strip_router_response",
        "target",
        "timeouts",
        "traits",
        "unready",
        "unsized_errors",
        "upstream",
    )

    def __init__(self, target: Target, live: Live) -> None:
        service = target.service
        self.target = target
        self.service = service
        self.key = service.key
        self.label = target.label
        self.column = target.column
        self.live = live
        self.meter = live.meter
        self.upstream = target.upstream
        self.router = target.upstream.router
        refusal = target.upstream.refusal
        # Why no request can be served now.
        self.unready = replies.not_ready(refusal) if refusal else None
        self.coming = target.upstream.coming  # none yet, but some are on their way: they wait
        if self.unready is None and not target.upstream.endpoints and not self.coming:
            self.unready = replies.NO_REPLICA
        self.traits = target.upstream.traits or _NO_TRAITS
        self.router_lines = b"".join(b"%b: %b\r\n" % h for h in self.traits.request_headers)
        # What the client must not tell a router: by whole names and by prefixes, as lines begin.
        strip = self.traits.strip_request | ({self.traits.token_header} - {b""})
        names = tuple(name + b":" for name in sorted(strip))
        self.router_strip = self.traits.strip_request_prefixes + names
        steers = self.router is not None and target.upstream.mode == "steer"
        self.steer_paths = self.traits.steer_paths if steers else frozenset()
        # The head of a question, as far as it is the same for all.
        fields = ((b"content-type", b"application/json"), *self.traits.request_headers)
        self.questions = {
            path: http2.post(path.encode(), b"router", fields) for path in self.steer_paths
        }
        spec = service.router
        self.steer_timeout = 0.0 if spec is None else spec.steer_timeout
        self.steer_body_limit = 0 if spec is None else spec.steer_body_limit
        self.routing_key = None if spec is None else spec.routing_key_header
        self.debug_headers = service.debug_headers
        self.timeouts = service.timeouts
        self.max_body_size = service.client_max_body_size
        self.limits = target.limits
        self.allowed_paths = target.allowed_paths
        # Whether any rule depends on the path, so that it must be normalised first.
        self.denied_paths = self.traits.denied_paths
        self.by_path = (
            self.allowed_paths is not None
            or bool(self.denied_paths)
            or any(rule.prefix != "/" for rule in self.limits)
        )
        self.openai_errors = target.openai_errors
        self.forward_auth = target.forward_auth
        self.cors = service.cors
        self.https = service.https
        self.hsts = hsts_line(service.hsts)
        self.strip_response = _CORS_FIELDS if self.cors else frozenset()
        if self.hsts:
            self.strip_response |= {b"strict-transport-security"}
        self.strip_router_response = self.strip_response | self.traits.strip_response
        self.refuse_redirects = False
        self.unsized_errors = False  # they end with their connection: their size is not believed
        self.from_bridge = False  # answers tell the edge which replica, and how it failed

    def steers(self, exchange: Exchange) -> bool:
        """Whether the router is to decide on this request without carrying it."""
        return (
            exchange.method == "POST"
            and not exchange.upgrade
            and exchange.upstream_target.partition("?")[0] in self.steer_paths
        )

    @property
    def newest(self) -> Served:
        """The service as it is now: a question to its router takes time, and a replica that has
        left meanwhile must get nothing new."""
        return self.live.served or self

    @property
    def now(self) -> Served:
        """The same with the replicas of today, also where it is served in another way than at its
        own domain."""
        newest = self.live.served
        if newest is None or newest.upstream is self.upstream:
            return self
        return Served(replace(self.target, upstream=newest.upstream), self.live)

    def endpoint(self, replica: str) -> Endpoint | None:
        """A replica that takes new requests."""
        for endpoint in self.upstream.endpoints:
            if endpoint.replica == replica:
                return endpoint
        return None

    def choose(self, plane: Plane, tried: frozenset[str] = _NONE) -> Endpoint | None:
        """The replica for one attempt; `tried` have failed this request. None without replicas."""
        live, upstream = self.live, self.upstream
        endpoints = upstream.endpoints
        if len(endpoints) == 1 and not live.ejections.out:
            return endpoints[0]
        live.turn += 1
        return pick(
            endpoints,
            plane.loads,
            balance=upstream.balance,
            salt=plane.chance.getrandbits(30) if upstream.balance == "random" else live.turn,
            tried=tried,
            ejections=live.ejections,
            now=plane.loop.time(),
        )

    def lines(self, origin: bytes | None, *, secure: bool) -> bytes:
        """What every answer carries, a refusal too: else a browser's script cannot read it."""
        lines = b"" if self.cors is None else response_headers(self.cors, origin)
        return lines + self.hsts if secure else lines

    def __repr__(self) -> str:
        return f"<Served {self.key} [{len(self.upstream.endpoints)} endpoints]>"


def hsts_line(hsts: Hsts | None) -> bytes:
    """Of every answer over HTTPS, in place of a replica's own (RFC 6797, 7.2)."""
    if hsts is None:
        return b""
    subdomains = b"; includeSubDomains" if hsts.subdomains else b""
    preload = b"; preload" if hsts.preload else b""
    return b"Strict-Transport-Security: max-age=%d%b%b\r\n" % (hsts.max_age, subdomains, preload)


def response_headers(cors: Cors, origin: bytes | None) -> bytes:
    """Lines of every answer, in place of a replica's own."""
    return b"".join(b"%b: %b\r\n" % field for field in cors_fields(cors, origin))


def cors_fields(cors: Cors, origin: bytes | None) -> tuple[tuple[bytes, bytes], ...]:
    """What an answer tells a browser (Fetch, 3.2.3); an origin that may not ask gets nothing that
    helps it."""
    allowed = _allowed_origin(cors, origin)
    if allowed is None:
        return ((b"Vary", b"Origin"),)
    return (
        (b"Access-Control-Allow-Origin", allowed),
        (b"Access-Control-Allow-Methods", ", ".join(cors.methods).encode()),
        (b"Access-Control-Allow-Headers", ", ".join(cors.headers).encode()),
        *_credentials(cors, allowed),
    )


def _allowed_origin(cors: Cors, origin: bytes | None) -> bytes | None:
    if "*" in cors.origins and not cors.credentials:
        return b"*"
    if origin is None:
        return None
    known = "*" in cors.origins or origin.decode("latin-1") in cors.origins
    return origin if known else None


def _credentials(cors: Cors, allowed: bytes) -> list[tuple[bytes, bytes]]:
    fields = [] if allowed == b"*" else [(b"Vary", b"Origin")]
    if cors.credentials:
        fields.append((b"Access-Control-Allow-Credentials", b"true"))
    return fields
