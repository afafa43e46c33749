"""The heads of the hop upstream, as bytes: what a replica or router is sent, what a client gets.

Owns: the fields this gateway adds, removes and rewrites per hop. Does not own: which fields are
hop-by-hop (core.headers), when a head is due (forward).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gatewayd.core import http2
from gatewayd.core.headers import ResponseHead, drop_prefixed
from gatewayd.core.model import Endpoint
from gatewayd.core.retry import IDEMPOTENT
from gatewayd.net.pool import POOL_IDLE_S, Pool
from gatewayd.net.upstream import JOIN_SIZE, UpstreamConnection
from gatewayd.proxy.served import response_headers

if TYPE_CHECKING:
    from gatewayd.proxy.exchange import Exchange
    from gatewayd.proxy.plane import Plane
    from gatewayd.proxy.served import Served

# Between the bridge and the edge: how an attempt at a replica failed, and which replica it was.
FAILURE_FIELD: Final = b"X-Gatewayd-Failure"
REPLICA_FIELD: Final = b"X-Gatewayd-Replica"
_CHUNKED: Final = b"Transfer-Encoding: chunked\r\n"
_ID: Final = b"X-Request-Id: "


def request_head(
    exchange: Exchange, served: Served, endpoint: Endpoint, is_last: bool = False
) -> bytes:
    """What the endpoint is sent before the body. `is_last`: nothing follows on its connection."""
    to_router = endpoint is served.router
    known = exchange.known
    if known is None:
        start = _start(exchange, served, to_router=to_router)
    elif to_router:
        start = known.to_router = known.to_router or _start(exchange, served, to_router=True)
    else:
        start = known.to_replica = known.to_replica or _start(exchange, served, to_router=False)
    more = b"\r\n"  # ends the id's line
    if to_router and (key := _routing_key(exchange, served)):
        more += b"%b: %b\r\n" % (served.traits.routing_key_header, key)
    if exchange.length > 0:
        more += b"Content-Length: %d\r\n" % exchange.length
    elif exchange.length < 0:
        more += _CHUNKED
    elif b"content-length" in exchange.head.noted:
        more += b"Content-Length: 0\r\n"
    if exchange.upgrade:
        more += b"Connection: Upgrade\r\nUpgrade: %b\r\n" % exchange.upgrade
    elif is_last:
        more += b"Connection: close\r\n"
    if not exchange.request_id:
        return start + more[2:] + b"\r\n"
    return start + exchange.request_id + more + b"\r\n"


def _start(exchange: Exchange, served: Served, *, to_router: bool) -> bytes:
    """The part that is the same whenever the same head comes, up to the request's id."""
    # A client of HTTP/1.0 understands no chunks, so none are asked for.
    version = b"HTTP/1.1" if exchange.http11 else b"HTTP/1.0"
    target = exchange.upstream_target.encode("utf-8", "surrogateescape")
    line = b"%b %b %b\r\nHost: %b\r\n" % (
        exchange.method.encode(),
        target,
        version,
        exchange.host.encode(),
    )
    lines = exchange.head.lines
    more = b""
    if to_router:
        if served.router_strip:
            lines = drop_prefixed(lines, served.router_strip)
        more = served.router_lines
    elif served.forward_auth and (auth := exchange.head.noted.get(b"authorization")) is not None:
        more = b"Authorization: %b\r\n" % auth
    id_ = _ID if exchange.request_id else b""
    return b"".join((line, *lines, exchange.forwarded_lines, more, id_))


def trust_s(exchange: Exchange, endpoint: Endpoint, pool: Pool) -> float:
    """How long a pooled connection may have been idle to carry this request; 0.0: it gets a fresh
    one, and the endpoint is told that nothing follows on it.

    An idle connection may be closing at this moment. What may be repeated takes that risk; so does
    what is written at once to a Unix socket, because the kernel tells when it has not been read;
    the rest only where the peer is known to keep idle connections for long.
    """
    if not exchange.http11:
        return 0.0
    if endpoint.reuse_s:
        return endpoint.reuse_s
    if exchange.method in IDEMPOTENT or (
        pool.local
        and exchange.length <= JOIN_SIZE
        and (exchange.known is not None or exchange.payload.is_eof())
    ):
        return POOL_IDLE_S
    return 0.0


def question_head(exchange: Exchange, served: Served, token: bytes) -> bytes:
    """The header block of a question to a router: what it decides by, and nothing else of the
    client's. That the body is JSON is for the replica to judge, so it is said of every one."""
    parts = [
        served.questions[exchange.upstream_target.partition("?")[0]],
        http2.field(served.traits.token_header, token),
        http2.field(b"x-request-id", exchange.request_id),
    ]
    if key := _routing_key(exchange, served):
        parts.append(http2.field(served.traits.routing_key_header, key))
    return b"".join(parts)


def _routing_key(exchange: Exchange, served: Served) -> bytes:
    """What a sticky policy goes by: what the client sent in the field that the operator named for
    it, or what makes the request one of its own."""
    traits = served.traits
    if not traits.routing_key_header:
        return b""
    key = None if served.routing_key is None else exchange.message.headers.get(served.routing_key)
    if key is not None:
        return key.encode("utf-8", "surrogateescape")
    return exchange.request_id if traits.routing_key_always else b""


def response_head(
    exchange: Exchange, served: Served, connection: UpstreamConnection, plane: Plane
) -> bytes:
    """What the client is sent before the body; decides `exchange.close` where the end of the
    body is the end of the connection."""
    head = connection.head
    start = head.made or _response_start(head)
    if head.chunked and not exchange.http11:
        start = start.replace(b"\r\n" + _CHUNKED, b"\r\n", 1)  # proxy.dechunked
    if head.length < 0:
        bodyless = connection.status in (204, 304) or exchange.method == "HEAD"
        if not head.chunked and not bodyless:
            exchange.close = True
    elif served.unsized_errors and connection.status >= 400:
        sized = b"content-length:"
        start = b"".join(line for line in start.splitlines(True) if line[:15].lower() != sized)
        exchange.close = True
    more = b"\r\n" if head.has_date else plane.date_line
    if served.cors is not None:
        more += response_headers(served.cors, exchange.head.noted.get(b"origin"))
    if served.hsts and exchange.secure:
        more += served.hsts
    if (served.from_bridge or served.debug_headers) and exchange.replica:
        more += b"%b: %b\r\n" % (REPLICA_FIELD, exchange.replica.encode())
    if exchange.close:
        more += b"Connection: close\r\n"
    return start + exchange.request_id + more + b"\r\n"


def _response_start(head: ResponseHead) -> bytes:
    """The part that is the same whenever a replica answers with the same head, up to the id."""
    parts = [head.status_line, *head.lines]
    if head.chunked:
        parts.append(_CHUNKED)
    if head.content_type[:17].lower() == b"text/event-stream":
        parts.append(b"X-Accel-Buffering: no\r\n")  # for proxies in front that would hold events
    parts.append(_ID)
    head.made = start = b"".join(parts)
    return start


def switching_head(exchange: Exchange, connection: UpstreamConnection) -> bytes:
    """The 101 of a granted upgrade (RFC 9110, 7.8)."""
    return b"".join(
        (
            connection.head.status_line,
            *connection.head.lines,
            b"Connection: Upgrade\r\nUpgrade: %b\r\n" % exchange.upgrade,
            b"X-Request-Id: %b\r\n\r\n" % exchange.request_id,
        )
    )
