"""Bodies of registry calls: what a caller may send, and what it means here.

Owns: shapes and their conversion to Service and Replica. Does not own: whether a change is allowed
(control.registry), how errors look on the wire (control.api.replies).

Unknown fields are ignored at every level: callers of other releases send more.
"""

from __future__ import annotations

import os
import stat
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from gatewayd.config.model import Config
from gatewayd.config.values import (
    parse_duration,
    parse_replica_url,
    parse_size,
    parse_socket_path,
    replica_id,
)
from gatewayd.control.api.model_bodies import Domain, OpenAiModelBody, OptionsBody
from gatewayd.control.registry import NO_INTERNAL_IP, RefusedError
from gatewayd.core.entrypoint import OPENAI
from gatewayd.core.model import (
    Address,
    Balance,
    Cors,
    RateLimit,
    Replica,
    RouterMode,
    RouterSpec,
    Service,
    Timeouts,
    UnixAddress,
)

NOT_YET = "not available yet"
_DRAIN_TIMEOUT_MAX_S = 3600.0


class Body(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _one_or_many(value: object) -> object:
    return [value] if isinstance(value, str) else value


_NAME = r"^[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?$"
Name = Annotated[str, BeforeValidator(_lower), Field(pattern=_NAME)]
Seconds = Annotated[
    float, BeforeValidator(lambda v: parse_duration(v) if isinstance(v, str) else v)
]
MaybeSeconds = Annotated[Seconds, Field(gt=0)] | None
Bytes = Annotated[int, BeforeValidator(lambda v: parse_size(v) if isinstance(v, str) else v)]
Prefix = Annotated[str, Field(pattern=r"^/[^\s\\{}]*$")]
ReplicaId = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,128}$")]


class RateKeyBody(Body):
    type: Literal["ip_address", "header"]
    header: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]+$", max_length=500)] | None = None


class RateLimitBody(Body):
    prefix: Prefix
    key: RateKeyBody
    rps: Annotated[float, Field(gt=0)]
    burst: Annotated[int, Field(ge=0)]


class TimeoutsBody(Body):
    connect: MaybeSeconds = Timeouts().connect
    first_byte: MaybeSeconds = Timeouts().first_byte
    idle: MaybeSeconds = Timeouts().idle
    total: MaybeSeconds = Timeouts().total


class RouterBody(Body):
    type: str
    mode: RouterMode = "auto"
    policy: str | None = None
    steer_timeout: Annotated[Seconds, Field(gt=0)] = RouterSpec("").steer_timeout
    steer_body_limit: Bytes = RouterSpec("").steer_body_limit
    routing_key_header: str | None = None
    pd_disaggregation: bool = False
    args: dict[str, str | int | float | bool | None] = {}


class CorsBody(Body):
    origins: list[str] = ["*"]
    methods: list[str] = list(Cors().methods)
    headers: list[str] = ["*"]
    max_age: int = 600
    credentials: bool = False


class RegisterServiceBody(Body):
    """The registry's own fields, and those of a service in the file."""

    run_name: Name
    domain: Annotated[list[Domain], BeforeValidator(_one_or_many)] = []
    https: bool = False
    auth: bool | None = None
    client_max_body_size: Annotated[Bytes, Field(gt=0)] = 64 * 1024 * 1024
    options: OptionsBody = OptionsBody()
    rate_limits: list[RateLimitBody] = []
    read_timeout: int | None = None
    router: RouterBody | str | None = None
    has_router_replica: bool = False
    model: str | None = None
    strip_prefix: Prefix | None = None
    allowed_paths: list[Prefix] | None = None
    timeouts: TimeoutsBody | None = None
    balance: Balance = "least_requests"
    cors: CorsBody | Literal["openai"] | None = None
    debug_headers: bool | None = None


class RegisterReplicaBody(Body):
    job_id: ReplicaId | None = None
    id: ReplicaId | None = None
    socket: str | None = None
    url: str | None = None
    ssh_host: str | None = None
    app_port: int | None = None
    internal_ip: str | None = None


class WithdrawBody(Body):
    drain: bool = False
    timeout: Annotated[Seconds, Field(ge=0, le=_DRAIN_TIMEOUT_MAX_S)] | None = None


def to_service(project: str, body: RegisterServiceBody, config: Config) -> Service:
    """Raises RefusedError for what this gateway cannot do."""
    auth = body.auth if body.auth is not None else config.auth is not None
    if auth and config.auth is None:
        raise RefusedError("`auth` is true, but this gateway has no `auth` configured to ask")
    domains = tuple(dict.fromkeys(body.domain))
    if not domains:
        if config.domain is None:
            raise RefusedError("`domain` is needed: this gateway has no domain of its own")
        domains = (f"{body.run_name}.{config.domain}",)
    option = None if body.options.openai is None else body.options.openai.model
    model = body.model or (None if option is None else option.name)
    cors = _cors(body.cors)
    if isinstance(option, OpenAiModelBody):
        cors = cors or Cors()  # browsers call it
    return Service(
        project=project,
        name=body.run_name,
        domains=domains,
        auth=auth,
        https=body.https,
        model=model,
        model_format=OPENAI if option is None else option.meaning(),
        client_max_body_size=body.client_max_body_size,
        strip_prefix=(body.strip_prefix or "").rstrip("/") or None,
        allowed_paths=None if body.allowed_paths is None else tuple(body.allowed_paths),
        timeouts=_timeouts(body),
        balance=body.balance,
        rate_limits=tuple(_rate_limit(limit) for limit in body.rate_limits),
        cors=cors,
        router=_router(body, config),
        router_replica=body.has_router_replica,
        debug_headers=config.debug_headers if body.debug_headers is None else body.debug_headers,
        origin="api",
    )


def to_replica(body: RegisterReplicaBody, *, by_internal_ip: bool = False) -> Replica:
    """Raises RefusedError for an address that cannot be dialled. `by_internal_ip`: the gateway
    reaches it where other replicas do, so that no tunnel is needed."""
    if by_internal_ip and body.url is None and not body.internal_ip:
        raise RefusedError(NO_INTERNAL_IP)
    if by_internal_ip and body.socket is None and body.url is None:
        body = body.model_copy(update={"url": _internal_url(body), "ssh_host": None})
    if body.ssh_host is not None:
        raise RefusedError(f"replicas behind ssh are {NOT_YET}: register a `socket` or a `url`")
    if (body.socket is None) == (body.url is None):
        raise RefusedError("a replica has exactly one of `socket` and `url`")
    try:
        if body.socket is not None:
            address: Address = parse_socket_path(body.socket.removeprefix("unix:"))
        else:
            assert body.url is not None
            address = parse_replica_url(body.url)
    except ValueError as error:
        raise RefusedError(f"{'socket' if body.socket is not None else 'url'}: {error}") from error
    if isinstance(address, UnixAddress):
        _check_socket(address.path)
    return Replica(
        body.job_id or body.id or replica_id(address),
        address,
        origin="api",
        internal_ip=body.internal_ip or None,
    )


def _internal_url(body: RegisterReplicaBody) -> str:
    assert body.internal_ip
    if body.app_port is None:
        raise RefusedError("a replica with `internal_ip` needs its `app_port`")
    host = f"[{body.internal_ip}]" if ":" in body.internal_ip else body.internal_ip
    return f"http://{host}:{body.app_port}"


def _check_socket(path: str) -> None:
    """A typing error is found now, not by the first request."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise RefusedError(f"there is no socket {path}: start the replica first") from None
    except OSError as error:
        raise RefusedError(f"socket {path}: {error.strerror}") from error
    if not stat.S_ISSOCK(mode):
        raise RefusedError(f"{path} is not a socket")


def _timeouts(body: RegisterServiceBody) -> Timeouts:
    if body.timeouts is not None:
        return Timeouts(**body.timeouts.model_dump())
    if body.read_timeout is not None and body.read_timeout > 0:
        # Between two reads, before the first byte as well as after it.
        seconds = float(body.read_timeout)
        return Timeouts(first_byte=seconds, idle=seconds)
    return Timeouts()


def _rate_limit(body: RateLimitBody) -> RateLimit:
    header = None
    if body.key.type == "header":
        if body.key.header is None:
            raise RefusedError("a rate limit with `type: header` needs the name of the `header`")
        header = body.key.header.lower()
    return RateLimit(body.prefix, body.rps, body.burst, header)


def _cors(body: CorsBody | Literal["openai"] | None) -> Cors | None:
    if isinstance(body, CorsBody):
        lists: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in body.model_dump().items()
        }
        return Cors(**lists)
    return None if body is None else Cors()


def _router(body: RegisterServiceBody, config: Config) -> RouterSpec | None:
    if body.has_router_replica and body.router is None:
        return None
    if "router" not in body.model_fields_set:
        return config.router
    match body.router:
        case None:
            return None
        case str() as name:
            return RouterSpec(name)
        case RouterBody() as router:
            args = tuple(
                (key, None if value is None or value is True else str(value))
                for key, value in router.args.items()
                if value is not False
            )
            return RouterSpec(
                router.type,
                router.mode,
                router.policy,
                args,
                steer_timeout=router.steer_timeout,
                steer_body_limit=router.steer_body_limit,
                routing_key_header=router.routing_key_header,
                pd_disaggregation=router.pd_disaggregation,
            )
