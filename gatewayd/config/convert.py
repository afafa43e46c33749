"""From raw tables to the frozen `Config`: defaults that follow from other keys, and the rules
that hold between tables.

Owns: the only conversion. Does not own: single tables (config.schema), services
(config.convert_service).
"""

from __future__ import annotations

import hashlib
import itertools
import os
import socket
from dataclasses import replace

from gatewayd.config.convert_certificate import Https
from gatewayd.config.convert_service import convert_router, convert_services
from gatewayd.config.model import Config, Listen, ListenAddress, PortRange, Ports
from gatewayd.config.rules import CheckCertificate, CheckRouter, Rules
from gatewayd.config.schema import CLOUD_KEYS, GatewayFile
from gatewayd.config.schema_auth import (
    DstackAuthTable,
    HttpAuthTable,
    NoAuthTable,
    TokensAuthTable,
    TokenTable,
)
from gatewayd.config.schema_edge import ListenTable, PortsTable
from gatewayd.config.schema_models import convert_endpoint
from gatewayd.core.entrypoint import Entrypoint
from gatewayd.core.model import (
    Address,
    Auth,
    DstackAuth,
    HttpAuth,
    Limits,
    Log,
    Service,
    TcpAddress,
    Token,
    TokensAuth,
)

WORKERS_AUTO_MAX = 8
METRICS_PORT_OFFSET = 10_000  # how far a router's metrics port lies above its own


def convert(
    raw: GatewayFile,
    rules: Rules,
    *,
    source: str,
    check_router: CheckRouter | None = None,
    check_certificate: CheckCertificate | None = None,
) -> Config:
    """The effective configuration; what the rules forbid is said to `rules`, and then the
    result is not meant to be used."""
    https = Https(raw, rules, check_certificate)
    router = convert_router(raw.router, ("router",), rules, check_router)
    auth = _auth(raw, rules)
    services = convert_services(raw, rules, check_router, https)
    return Config(
        source=source,
        name=raw.name or socket.gethostname(),
        project=raw.project,
        domain=raw.domain,
        router=router,
        listen=_listen(raw.listen, https.listen, rules),
        workers=raw.workers or default_workers(),
        state_dir=raw.state_dir,
        run_dir=raw.run_dir,
        import_state=raw.import_state,
        import_keys=raw.import_keys,
        trusted_proxies=tuple(dict.fromkeys(raw.trusted_proxies)),
        log=Log(raw.log.level, raw.log.format, raw.log.access),
        auth=auth,
        no_auth=isinstance(raw.auth, NoAuthTable),
        limits=Limits(**raw.limits.model_dump()),
        drain_timeout=raw.drain_timeout,
        upgrade_drain_timeout=raw.upgrade_drain_timeout,
        ports=_ports(raw.ports, rules),
        stats_count=raw.stats.count,
        debug_headers=raw.debug_headers,
        services=services,
        model_endpoint=_endpoint(raw, services, https, rules, configured=auth is not None),
        certificate=https.certificate,
        cloud=tuple((key, value) for key in CLOUD_KEYS if (value := getattr(raw, key)) is not None),
    )


def _endpoint(
    raw: GatewayFile,
    services: tuple[Service, ...],
    https: Https,
    rules: Rules,
    *,
    configured: bool,
) -> Entrypoint | None:
    endpoint = convert_endpoint(
        raw.model_endpoint, raw.project, services, configured=configured, rules=rules
    )
    if endpoint is None:
        return None
    return replace(endpoint, https=https.wanted(None, (endpoint.domain,), ("model_endpoint",)))


def default_workers() -> int:
    return min(WORKERS_AUTO_MAX, len(os.sched_getaffinity(0)))


def _listen(raw: ListenTable, https: tuple[ListenAddress, ...], rules: Rules) -> Listen:
    places: list[tuple[tuple[str | int, ...], Address | None]] = [
        *((("listen", "http", i), bound.address) for i, bound in enumerate(raw.http)),
        *((("listen", "https", i), bound.address) for i, bound in enumerate(https)),
        (("listen", "admin"), _bindable(raw.admin)),
        (("listen", "metrics"), _bindable(raw.metrics)),
    ]
    for i, (loc, address) in enumerate(places):
        for earlier_loc, earlier in places[:i]:
            if address is not None and earlier is not None and _collide(address, earlier):
                rules.broken(
                    loc, f"{address} collides with {earlier} of {rules.path(*earlier_loc)}"
                )
    everywhere = (*raw.http, *https, raw.admin, raw.metrics)
    names = [at.fd_name for at in everywhere if isinstance(at, ListenAddress) and at.fd_name]
    if len(set(names)) != len(names):
        rules.broken(("listen", "http"), "a systemd socket stands here twice")
    return Listen(http=tuple(raw.http), admin=raw.admin, metrics=raw.metrics, https=https)


def _bindable(at: Address | ListenAddress | None) -> Address | None:
    """None for what systemd has bound."""
    return None if isinstance(at, ListenAddress) else at


def _collide(one: Address, other: Address) -> bool:
    if isinstance(one, TcpAddress) and isinstance(other, TcpAddress):
        same_family = (":" in one.host) == (":" in other.host)
        any_host = same_family and not {"0.0.0.0", "::"}.isdisjoint((one.host, other.host))
        return (one.host == other.host or any_host) and one.port == other.port != 0
    return one == other


def _ports(raw: PortsTable, rules: Rules) -> Ports:
    router = raw.router
    above = PortRange(router.first + METRICS_PORT_OFFSET, router.last + METRICS_PORT_OFFSET)
    if above.last > 65535:
        rules.broken(
            ("ports", "router"),
            f"routers' metrics ports lie {METRICS_PORT_OFFSET} above: at most "
            f"{65535 - METRICS_PORT_OFFSET} can be the last",
        )
    ranges = (("router", router), ("router's metrics", above), ("bridge", raw.bridge))
    for (name, one), (other_name, other) in itertools.combinations(ranges, 2):
        if one.first <= other.last and other.first <= one.last:
            rules.broken(("ports",), f"the {name} ports and the {other_name} ports overlap")
    return Ports(bridge=raw.bridge, router=router)


# --- auth --------------------------------------------------------------------------------------


def _auth(raw: GatewayFile, rules: Rules) -> Auth | None:
    match raw.auth:
        case TokensAuthTable() as table:
            return TokensAuth(_tokens(table.tokens, rules), table.forward)
        case HttpAuthTable() as table:
            address, path = table.url
            return HttpAuth(
                address,
                path or table.path or "/",
                cache=table.cache,
                stale_if_error=table.stale_if_error,
                timeout=table.timeout,
                forward=table.forward,
            )
        case DstackAuthTable() as table:
            return DstackAuth(
                table.server_connections_dir,
                cache=table.cache,
                stale_if_error=table.stale_if_error,
                timeout=table.timeout,
                forward=table.forward,
            )
    return None


def _tokens(tables: list[TokenTable], rules: Rules) -> tuple[Token, ...]:
    tokens: list[Token] = []
    for i, table in enumerate(tables):
        if table.token is not None:
            digest = hashlib.sha256(table.token.reveal().encode()).digest()
        else:
            digest = table.sha256 or b""
        for earlier, token in enumerate(tokens):
            there = rules.path("auth", "tokens", earlier)
            if token.name == table.name:
                rules.broken(("auth", "tokens", i, "name"), f"`{token.name}` is also {there}")
            if token.sha256 == digest:
                rules.broken(("auth", "tokens", i), f"this token is also that of {there}")
        tokens.append(Token(table.name, digest))
    return tuple(tokens)
