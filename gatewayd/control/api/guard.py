"""Who may speak to the admin address: programs of this machine, no web page.

Owns: refusing foreign hosts (DNS rebinding), foreign origins (forged requests of a browser) and
writes that are not JSON; which pages may read answers (CORS). Does not own: authentication; whoever
can connect is trusted.
"""

from __future__ import annotations

import ipaddress
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Middleware

from gatewayd.control.api.replies import Handler, refuse
from gatewayd.core.model import Address, TcpAddress

_READS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_PREFLIGHT: Final = "Access-Control-Request-Method"
_MAX_AGE_S: Final = 600
# `gateway` is what a registry's own server calls us through its ssh forward.
_LOCAL_NAMES: Final = frozenset({"localhost", "gateway"})


def host_of(value: str) -> str:
    """The name in a Host header, without its port, in lower case; "" when it is malformed."""
    try:
        return (urlsplit(f"//{value}").hostname or "").removesuffix(".")
    except ValueError:
        return ""


def is_local(host: str, bound: TcpAddress) -> bool:
    """Whether a Host names this machine without asking a name server somebody else may own."""
    if host in _LOCAL_NAMES or host.endswith(".localhost") or host == bound.host:
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or ipaddress.ip_address(bound.host).is_unspecified


def _is_of_this_machine(origin: str) -> bool:
    """Whose page may read answers; what the network serves may not, whoever looks at it here."""
    try:
        name = (urlsplit(origin).hostname or "").removesuffix(".")
        return (
            name in _LOCAL_NAMES
            or name.endswith(".localhost")
            or ipaddress.ip_address(name).is_loopback
        )
    except ValueError:
        return False


def _preflight_fields(request: web.Request) -> dict[str, str]:
    fields = {
        "Access-Control-Allow-Methods": "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT",
        "Access-Control-Max-Age": str(_MAX_AGE_S),
    }
    if asked := request.headers.get("Access-Control-Request-Headers"):
        fields["Access-Control-Allow-Headers"] = asked
    return fields


def guard(bound: Address) -> Middleware:
    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        host = request.headers.get("Host")
        if (
            isinstance(bound, TcpAddress)
            and host is not None
            and not is_local(host_of(host), bound)
        ):
            return refuse(403, "This Host is not served on the admin address")
        response = await answer(request, handler)
        origin = request.headers.get("Origin")
        if origin is not None and _is_of_this_machine(origin):
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Vary"] = "Origin"
        return response

    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method == "OPTIONS" and _PREFLIGHT in request.headers:
            return web.Response(headers=_preflight_fields(request), text="OK")
        if request.method not in _READS:
            origin = request.headers.get("Origin")
            if origin is not None and urlsplit(origin).netloc != request.headers.get("Host"):
                return refuse(403, "Writes from another origin are refused")
            if request.body_exists and request.content_type != "application/json":
                return refuse(415, "Content-Type must be application/json")
        return await handler(request)

    return check
