"""From raw service tables to `Service`s, and the rules between services.

Owns: names and domains that must be one's own, what a service inherits from the top.
Does not own: the rest of the file (config.convert).
"""

from __future__ import annotations

from gatewayd.config.convert_certificate import Https, convert_hsts
from gatewayd.config.rules import CheckRouter, Loc, Rules
from gatewayd.config.schema import GatewayFile
from gatewayd.config.schema_auth import NoAuthTable
from gatewayd.config.schema_models import named_model
from gatewayd.config.schema_service import (
    CorsTable,
    ReplicaTable,
    RouterTable,
    ServiceTable,
    SshTable,
)
from gatewayd.config.values import replica_id
from gatewayd.core.model import (
    Address,
    Cors,
    RateLimit,
    Replica,
    RouterSpec,
    Service,
    SshHop,
    SshTunnel,
    Timeouts,
    UnixAddress,
)
from gatewayd.core.ssh import describe


def convert_services(
    raw: GatewayFile, rules: Rules, check_router: CheckRouter | None, https: Https
) -> tuple[Service, ...]:
    services: list[Service] = []
    names: dict[str, Loc] = {}
    owners: dict[str, Loc] = {}  # domain -> the service that has it
    for i, table in enumerate(raw.services):
        loc: Loc = ("services", i)
        if table.name in names:
            there = rules.path(*names[table.name])
            rules.broken((*loc, "name"), f"`{table.name}` is also the name of {there}")
        names.setdefault(table.name, loc)
        domains = _domains(table, raw.domain, loc, rules)
        for domain in domains:
            if domain in owners:
                at = (*loc, "domain") if table.domain else loc
                there = rules.path(*owners[domain])
                rules.broken(at, f"the domain `{domain}` is also that of {there}")
            owners.setdefault(domain, loc)
        certificate = https.own(table, domains, loc)
        model, model_format = named_model(table.model)
        services.append(
            Service(
                project=raw.project,
                name=table.name,
                domains=domains,
                auth=_auth(table, raw, loc, rules),
                model=model,
                model_format=model_format,
                client_max_body_size=table.client_max_body_size,
                strip_prefix=_strip_prefix(table),
                allowed_paths=None if table.allowed_paths is None else tuple(table.allowed_paths),
                timeouts=Timeouts(**table.timeouts.model_dump()),
                balance=table.balance,
                rate_limits=_rate_limits(table, loc, rules),
                cors=_cors(table),
                router=_router(table, raw, loc, rules, check_router),
                router_replica=table.router_replica,
                replicas=_replicas(table, loc, rules),
                https=https.wanted(table.https, domains, loc, own=certificate is not None),
                hsts=convert_hsts(table.hsts),
                certificate=certificate,
                debug_headers=(
                    raw.debug_headers if table.debug_headers is None else table.debug_headers
                ),
            )
        )
        _check_peers(services[-1], loc, rules)
    return tuple(services)


def _check_peers(service: Service, loc: Loc, rules: Rules) -> None:
    """Where replicas meet each other they need addresses that others can reach."""
    if service.router is None or not service.router.pd_disaggregation:
        return
    for i, replica in enumerate(service.replicas):
        if replica.peer_host is None:
            rules.broken(
                (*loc, "replicas", i),
                "with `pd_disaggregation` the other replicas have to reach it",
                "give its `url`, with a host that they know",
            )


def _domains(
    table: ServiceTable, gateway_domain: str | None, loc: Loc, rules: Rules
) -> tuple[str, ...]:
    if table.domain:
        return tuple(table.domain)
    if gateway_domain is not None:
        return (f"{table.name}.{gateway_domain}",)
    if rules.known(*loc, "domain") and rules.known("domain"):
        rules.broken(
            loc,
            f"nobody can reach `{table.name}`: it has no domain",
            "set `domain` here or at the top",
        )
    return ()


def _auth(table: ServiceTable, raw: GatewayFile, loc: Loc, rules: Rules) -> bool:
    configured = raw.auth is not None and not isinstance(raw.auth, NoAuthTable)
    if table.auth is None:
        return configured
    if table.auth and not configured and rules.known("auth"):
        rules.broken(
            (*loc, "auth"), "nobody is configured to ask", "add an `auth` table at the top"
        )
    return table.auth


def _strip_prefix(table: ServiceTable) -> str | None:
    """`/v1/` means `/v1`: what is left of a path begins with its slash."""
    return (table.strip_prefix or "").rstrip("/") or None


def _cors(table: ServiceTable) -> Cors | None:
    match table.cors:
        case "openai":
            return Cors()
        case CorsTable() as cors:
            return Cors(
                origins=tuple(cors.origins),
                methods=tuple(cors.methods),
                headers=tuple(cors.headers),
                max_age=int(cors.max_age),
                credentials=cors.credentials,
            )
    return None


def _rate_limits(table: ServiceTable, loc: Loc, rules: Rules) -> tuple[RateLimit, ...]:
    first: dict[str, int] = {}
    limits = []
    for i, raw in enumerate(table.rate_limits):
        if raw.prefix in first:
            there = rules.path(*loc, "rate_limits", first[raw.prefix])
            rules.broken(
                (*loc, "rate_limits", i, "prefix"), f"`{raw.prefix}` is limited by {there} already"
            )
        first.setdefault(raw.prefix, i)
        header = raw.key.header.lower() if raw.key.header is not None else None
        limits.append(RateLimit(raw.prefix, raw.rps, raw.burst, header))
    return tuple(limits)


# --- router ------------------------------------------------------------------------------------


def convert_router(
    raw: str | RouterTable | None, loc: Loc, rules: Rules, check_router: CheckRouter | None
) -> RouterSpec | None:
    """A router as it stands at `loc`, checked by those who know routers."""
    if raw is None:
        return None
    if isinstance(raw, str):
        spec = RouterSpec(raw)
    else:
        args = tuple((name, _arg(value)) for name, value in raw.args.items() if value is not False)
        spec = RouterSpec(
            raw.type,
            raw.mode,
            raw.policy,
            args,
            steer_timeout=raw.steer_timeout,
            steer_body_limit=raw.steer_body_limit,
            routing_key_header=raw.routing_key_header,
            pd_disaggregation=raw.pd_disaggregation,
        )
    if check_router is not None and rules.known(*loc):
        for message in check_router(spec):
            rules.broken(loc, message)
    return spec


def _arg(value: str | int | float | bool | None) -> str | None:
    return None if value is None or value is True else str(value)


def _router(
    table: ServiceTable,
    raw: GatewayFile,
    loc: Loc,
    rules: Rules,
    check_router: CheckRouter | None,
) -> RouterSpec | None:
    if "router" in table.model_fields_set:
        spec = convert_router(table.router, (*loc, "router"), rules, check_router)
        if spec is not None and table.router_replica:
            rules.broken(
                (*loc, "router_replica"),
                f"the router `{spec.type}` stands in front of this service already",
                "set `router: null` here",
            )
    elif table.router_replica:  # its replicas choose; the top's default is not meant for it
        spec = None
    else:  # the top's own has been checked where it stands
        spec = convert_router(raw.router, ("router",), rules, None)
    if spec is not None and "balance" in table.model_fields_set:
        rules.broken(
            (*loc, "balance"),
            f"the router `{spec.type}` chooses the replica of this service",
            "remove `balance`, or set `router: null` here",
        )
    return spec


# --- replicas ----------------------------------------------------------------------------------


def _replicas(table: ServiceTable, loc: Loc, rules: Rules) -> tuple[Replica, ...]:
    replicas: list[Replica] = []
    ids: dict[str, Loc] = {}
    addresses: dict[Address | str, Loc] = {}
    for i, raw in enumerate(table.replicas):
        at: Loc = (*loc, "replicas", i)
        tunnel = _tunnel(raw.ssh) if isinstance(raw, ReplicaTable) and raw.ssh else None
        if isinstance(raw, ReplicaTable):
            address, given = raw.socket or raw.url, raw.id
        else:
            address, given = raw, None
        shown = describe(tunnel) if tunnel is not None else address
        if shown is None:
            continue
        name = given or replica_id(shown)
        if shown in addresses:
            rules.broken(at, f"{shown} is also {rules.path(*addresses[shown])}")
        elif name in ids:
            rules.broken(at, f"the id `{name}` is also that of {rules.path(*ids[name])}")
        ids.setdefault(name, at)
        addresses.setdefault(shown, at)
        # Where a tunnel's socket is, only whoever opens it knows.
        replicas.append(Replica(name, address or UnixAddress(""), tunnel=tunnel))
    return tuple(replicas)


def _tunnel(table: SshTable) -> SshTunnel:
    jumps = (SshHop(each.host, each.port, identity=each.identity) for each in table.proxy)
    last = SshHop(table.host, table.port, identity=table.identity)
    return SshTunnel((*jumps, last), table.app_port)
