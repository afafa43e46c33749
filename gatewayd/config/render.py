"""The effective configuration as the tables and the text that would give it.

Owns: the way back, from `Config` to the file's words. Does not own: what changed (config.diff).
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import yaml

from gatewayd.config.model import Config, PortRange
from gatewayd.config.secrets import is_secret_arg
from gatewayd.config.values import format_duration, format_size
from gatewayd.core.certificate import (
    AcmeCertificate,
    CertificateSource,
    FileCertificate,
    LiveFolder,
)
from gatewayd.core.entrypoint import OPENAI, Entrypoint, OpenAiFormat, TgiFormat
from gatewayd.core.model import (
    Auth,
    Cors,
    DstackAuth,
    Hsts,
    HttpAuth,
    Limits,
    RateLimit,
    Replica,
    RouterSpec,
    Service,
    SshTunnel,
    Timeouts,
    TokensAuth,
    UnixAddress,
)
from gatewayd.core.secret import Secret

Tables = dict[str, Any]


class _Dumper(yaml.SafeDumper):
    """SafeDumper that masks secrets and does not abbreviate what stands there twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(
    Secret,
    lambda dumper, secret: dumper.represent_str(str(secret)),  # str() of one is ***
)


def render(config: Config) -> str:
    """YAML that loads as `config` again, but for the secrets, which are `***`."""
    text: str = yaml.dump(
        to_tables(config),
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=False,
    )
    return text


def to_tables(config: Config) -> Tables:
    """Every key of the file with its effective value; secrets are `Secret`."""
    listen = config.listen
    return {
        "name": config.name,
        "project": config.project,
        "domain": config.domain,
        "router": _router(config.router),
        "model_endpoint": _model_endpoint(config.model_endpoint),
        "certificate": _certificate(config.certificate),
        "listen": {
            "http": [str(address) for address in listen.http],
            "https": [str(address) for address in listen.https],
            "admin": str(listen.admin),
            "metrics": None if listen.metrics is None else str(listen.metrics),
        },
        "workers": config.workers,
        "state_dir": config.state_dir,
        "import_state": config.import_state,
        "import_keys": config.import_keys,
        "run_dir": config.run_dir,
        "ports": {"bridge": _ports(config.ports.bridge), "router": _ports(config.ports.router)},
        "trusted_proxies": list(config.trusted_proxies),
        "log": {
            "level": config.log.level,
            "format": config.log.format,
            "access": config.log.access,
        },
        "auth": {"type": "none"} if config.no_auth else _auth(config.auth),
        "limits": _limits(config.limits),
        "drain_timeout": format_duration(config.drain_timeout),
        "upgrade_drain_timeout": format_duration(config.upgrade_drain_timeout),
        "stats": {"count": config.stats_count},
        "debug_headers": config.debug_headers,
        "services": [_service(service) for service in config.services],
        **dict(config.cloud),
    }


def _ports(ports: PortRange) -> str:
    return f"{ports.first}-{ports.last}"


def _router(spec: RouterSpec | None) -> Tables | None:
    if spec is None:
        return None
    args: Tables = {
        name: Secret(value) if value is not None and is_secret_arg(name) else value
        for name, value in spec.args
    }
    return {
        "type": spec.type,
        "mode": spec.mode,
        "policy": spec.policy,
        "steer_timeout": format_duration(spec.steer_timeout),
        "steer_body_limit": format_size(spec.steer_body_limit),
        "routing_key_header": spec.routing_key_header,
        "pd_disaggregation": spec.pd_disaggregation,
        "args": args,
    }


def _auth(auth: Auth | None) -> Tables | None:
    match auth:
        case TokensAuth():
            tokens = [
                {"name": token.name, "sha256": Secret(token.sha256.hex())} for token in auth.tokens
            ]
            return {"type": "tokens", "tokens": tokens, "forward": auth.forward}
        case HttpAuth():
            if isinstance(auth.address, UnixAddress):
                where: Tables = {"url": f"{auth.address}:{auth.path}"}
            else:
                where = {"url": f"http://{auth.address}{auth.path}"}
            return {"type": "http", **where, **_asked(auth)}
        case DstackAuth():
            where = {"server_connections_dir": auth.server_connections_dir}
            return {"type": "dstack", **where, **_asked(auth)}
    return None


def _asked(auth: HttpAuth | DstackAuth) -> Tables:
    return {
        "cache": format_duration(auth.cache),
        "stale_if_error": format_duration(auth.stale_if_error),
        "timeout": format_duration(auth.timeout),
        "forward": auth.forward,
    }


def _certificate(source: CertificateSource | None) -> Tables | None:
    match source:
        case FileCertificate(cert, key, default):
            return {"type": "file", "cert": cert, "key": key, "default": default}
        case LiveFolder(path):
            return {"type": "letsencrypt-live", "dir": path}
        case AcmeCertificate():
            return {
                "type": "acme",
                "server": list(source.servers),
                "ca_file": source.ca_file,
                "email": source.email,
                "eab_kid": source.eab_kid,
                "eab_hmac_key": source.eab_hmac_key,
                "challenges": list(source.challenges),
                "dns_hook": source.dns_hook,
                "names": list(source.names),
            }
    return None


def _hsts(hsts: Hsts | None) -> Tables | None:
    if hsts is None:
        return None
    return {
        "max_age": format_duration(hsts.max_age),
        "include_subdomains": hsts.subdomains,
        "preload": hsts.preload,
    }


def _limits(limits: Limits) -> Tables:
    tables: Tables = {}
    for field in fields(limits):
        value = getattr(limits, field.name)
        if field.name.endswith("_size"):
            value = format_size(value)
        elif field.name.endswith(("_timeout", "_wait")):
            value = format_duration(value)
        tables[field.name] = value
    return tables


def _service(service: Service) -> Tables:
    allowed = service.allowed_paths
    return {
        "name": service.name,
        "domain": list(service.domains),
        "https": service.https,
        "certificate": _certificate(service.certificate),
        "hsts": _hsts(service.hsts),
        "auth": service.auth,
        "router": _router(service.router),
        "router_replica": service.router_replica,
        "model": _model(service),
        "client_max_body_size": format_size(service.client_max_body_size),
        "strip_prefix": service.strip_prefix,
        "allowed_paths": None if allowed is None else list(allowed),
        "timeouts": _timeouts(service.timeouts),
        # behind a router there is nothing to balance, and the file must not say it
        **({} if service.router is not None else {"balance": service.balance}),
        "rate_limits": [_rate_limit(limit) for limit in service.rate_limits],
        "cors": _cors(service.cors),
        "debug_headers": service.debug_headers,
        "replicas": [_replica(replica) for replica in service.replicas],
    }


def _model(service: Service) -> Tables | str | None:
    match service.model_format:
        case TgiFormat(chat_template, eos_token):
            return {
                "name": service.model,
                "format": "tgi",
                "chat_template": chat_template,
                "eos_token": eos_token,
            }
        case OpenAiFormat(prefix) if service.model is not None and prefix != OPENAI.prefix:
            return {"name": service.model, "prefix": prefix}
    return service.model


def _model_endpoint(endpoint: Entrypoint | None) -> Tables | None:
    return None if endpoint is None else {"domain": endpoint.domain, "auth": endpoint.auth}


def _timeouts(timeouts: Timeouts) -> Tables:
    values = {field.name: getattr(timeouts, field.name) for field in fields(timeouts)}
    return {
        phase: None if value is None else format_duration(value) for phase, value in values.items()
    }


def _rate_limit(limit: RateLimit) -> Tables:
    key = {"type": "ip_address"}
    if limit.header is not None:
        key = {"type": "header", "header": limit.header}
    return {
        "prefix": limit.prefix,
        "rps": int(limit.rps) if limit.rps.is_integer() else limit.rps,
        "burst": limit.burst,
        "key": key,
    }


def _cors(cors: Cors | None) -> Tables | None:
    if cors is None:
        return None
    return {
        "origins": list(cors.origins),
        "methods": list(cors.methods),
        "headers": list(cors.headers),
        "max_age": f"{cors.max_age}s",
        "credentials": cors.credentials,
    }


def _replica(replica: Replica) -> Tables:
    if replica.tunnel is not None:
        return {"id": replica.id, "ssh": _ssh(replica.tunnel)}
    if isinstance(replica.address, UnixAddress):
        return {"id": replica.id, "socket": replica.address.path}
    return {"id": replica.id, "url": f"http://{replica.address}"}


def _ssh(tunnel: SshTunnel) -> Tables:
    *jumps, last = (
        {"host": hop.destination, "port": hop.port, "identity": hop.identity} for hop in tunnel.hops
    )
    return {**last, "app_port": tunnel.app_port, "proxy": jumps}
