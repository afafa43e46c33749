"""Bodies of registry calls: what a caller may send, and what it means here.

Owns: shapes and their conversion to Service and Replica. Does not own: whether a change is allowed
(control.registry), how errors look on the wire (control.api.replies).

Unknown fields are ignored at every level: callers of other releases send more.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AnyHttpUrl, BeforeValidator, Field

from gatewayd.config.model import Config
from gatewayd.config.values import parse_duration, parse_size
from gatewayd.config.words import HeaderName, Method, Origin
from gatewayd.control.api.model_bodies import Body, Domain, OpenAiModelBody, OptionsBody
from gatewayd.control.conflicts import RefusedError
from gatewayd.control.state import AcmeSettings
from gatewayd.core.entrypoint import OPENAI
from gatewayd.core.model import Balance, Cors, RateLimit, RouterMode, RouterSpec, Service, Timeouts
from gatewayd.core.secret import Secret

_DRAIN_TIMEOUT_MAX_S = 3600.0
_NO_BOUND = 1 << 62  # of a body, in bytes
_LONGEST_S = 10 * 365 * 86400


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _one_or_many(value: object) -> object:
    return [value] if isinstance(value, str) else value


_NAME = r"^[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?$"
Name = Annotated[str, BeforeValidator(_lower), Field(pattern=_NAME)]
ProjectName = Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}$")]
Seconds = Annotated[
    float,
    BeforeValidator(lambda v: parse_duration(v) if isinstance(v, str) else v),
    Field(allow_inf_nan=False),
]
MaybeSeconds = Annotated[Seconds, Field(gt=0)] | None
Bytes = Annotated[int, BeforeValidator(lambda v: parse_size(v) if isinstance(v, str) else v)]
Prefix = Annotated[str, Field(pattern=r"^/[^\s\\{}]*$")]


class RateKeyBody(Body):
    type: Literal["ip_address", "header"]
    header: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]+$", max_length=500)] | None = None


class RateLimitBody(Body):
    prefix: Prefix
    key: RateKeyBody
    rps: Annotated[float, Field(gt=0, allow_inf_nan=False)]
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
    routing_key_header: HeaderName | None = None
    pd_disaggregation: bool = False
    args: dict[str, str | int | float | bool | None] = Field(default_factory=dict)


class CorsBody(Body):
    origins: list[Origin] = Field(default_factory=lambda: ["*"])
    methods: list[Method] = Field(default_factory=lambda: list(Cors().methods))
    headers: list[HeaderName] = Field(default_factory=lambda: ["*"])
    max_age: int = 600
    credentials: bool = False


class RegisterServiceBody(Body):
    """The registry's own fields, and those of a service in the file."""

    run_name: Name
    domain: Annotated[list[Domain], BeforeValidator(_one_or_many)] = Field(default_factory=list)
    https: bool = False
    id: str | None = None
    ssh_private_key: str | None = None
    auth: bool | None = None
    client_max_body_size: Annotated[Bytes, Field(ge=0)] = 64 * 1024 * 1024
    options: OptionsBody = OptionsBody()
    rate_limits: list[RateLimitBody] = Field(default_factory=list)
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


class SetIdBody(Body):
    id: str


class ConfigBody(Body):
    """Replaces what was set before as a whole."""

    acme_server: AnyHttpUrl | None = None
    acme_eab_kid: str | None = None
    acme_eab_hmac_key: str | None = None

    def meaning(self) -> AcmeSettings:
        server, key = self.acme_server, self.acme_eab_hmac_key
        return AcmeSettings(
            None if server is None else str(server),
            self.acme_eab_kid,
            None if key is None else Secret(key),
        )


class WithdrawBody(Body):
    drain: bool = False
    timeout: Annotated[Seconds, Field(ge=0, le=_DRAIN_TIMEOUT_MAX_S)] | None = None


def to_service(project: str, body: RegisterServiceBody, config: Config) -> Service:
    """Raises RefusedError for what this gateway cannot do."""
    auth = body.auth if body.auth is not None else config.auth is not None
    if auth and config.registered_auth is None:
        raise RefusedError("`auth` is true, but this gateway is configured to ask nobody")
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
        id=body.id,
        model=model,
        model_format=OPENAI if option is None else option.meaning(),
        # 0 is no bound, as it is to nginx, which those who register write this for.
        client_max_body_size=min(body.client_max_body_size, _NO_BOUND) or _NO_BOUND,
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


def _timeouts(body: RegisterServiceBody) -> Timeouts:
    if body.timeouts is not None:
        return Timeouts(**body.timeouts.model_dump())
    if body.read_timeout is not None and body.read_timeout > 0:
        # Between two reads, before the first byte as well as after it.
        seconds = float(min(body.read_timeout, _LONGEST_S))
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
