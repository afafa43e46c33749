"""A head that comes again on its connection: what it means is not worked out twice.

Owns: telling that bytes are the same head, and what followed from it. Does not own: what a head
means (handler), which limits it meets each time (admit).

A client that keeps its connection says the same head again and again, but for the length of the
body. aiohttp has parsed it once, and the edge has admitted it; the same bytes, in the same world,
mean the same. So a head is compared, which costs a tenth of parsing and judging it, and only what
depends on the moment (limits, an authority's word, who is least busy) is asked anew.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from gatewayd.proxy.exchange import Exchange
from gatewayd.proxy.payload import NO_BODY, WholeBody

if TYPE_CHECKING:
    from aiohttp.http_parser import RawRequestMessage

    from gatewayd.core.headers import RequestHead
    from gatewayd.core.ratelimit import Rule
    from gatewayd.proxy.connection import ClientConnection
    from gatewayd.proxy.served import Served

_MAX_HEAD: Final = 4096  # a connection may be idle for long, and keeps it
_LENGTH: Final = re.compile(rb"\r\n(?i:content-length): ?([0-9]{1,15})\r\n")
_MAX_DIGITS: Final = 15


class KnownExchange(Exchange):
    """An exchange whose head has been here before. Who it was admitted for is not asked again."""

    __slots__ = ()

    def __init__(self, connection: ClientConnection, known: KnownHead, body: bytes) -> None:
        self._begin(connection, known.message, WholeBody(body) if body else NO_BODY)
        self.known = known
        self.head = known.head
        self.host = known.host
        self.secure = known.secure
        self.served = known.served
        self.target = self.upstream_target = known.target
        self.client = known.client
        self.http11 = True
        self.close = False
        self.length = len(body)
        self.request_id = self.given_id = known.request_id
        self.rule_path = "/"
        self.bucket = known.bucket
        self.forwarded_lines = known.forwarded_lines
        self.token_name = known.token_name


class KnownHead:
    """Valid in the world (snapshot) that it was admitted in, on its connection only."""

    __slots__ = (
        "after",
        "before",
        "bucket",
        "client",
        "forwarded_lines",
        "head",
        "host",
        "message",
        "request_id",
        "secure",
        "served",
        "target",
        "to_replica",
        "to_router",
        "token_name",
        "world",
    )

    def __init__(self, before: bytes, after: bytes, exchange: Exchange, world: object) -> None:
        assert exchange.served is not None
        self.before = before  # all of the head, or up to the digits of its Content-Length
        self.after = after  # from behind them
        self.world = world
        self.message: RawRequestMessage = exchange.message
        self.head: RequestHead = exchange.head
        self.served: Served = exchange.served
        self.host = exchange.host
        self.secure = exchange.secure
        self.target = exchange.target
        self.client = exchange.client
        self.forwarded_lines = exchange.forwarded_lines
        self.request_id = exchange.given_id
        self.token_name = exchange.token_name
        self.bucket: tuple[Rule, bytes] | None = exchange.bucket
        self.to_replica = self.to_router = b""  # what the hop's head begins with, once made

    def __repr__(self) -> str:
        return f"<KnownHead {self.message.method} {self.host}{self.target}>"

    def again(self, connection: ClientConnection, data: bytes, world: object) -> Exchange | None:
        """The exchange that `data` is, when it is this head again."""
        body = self.body(data) if world is self.world else None
        if body is None:
            return None
        return KnownExchange(connection, self, body)

    def body(self, data: bytes) -> bytes | None:
        """The body, if `data` is this head with its whole body and nothing else; else None."""
        before, after = self.before, self.after
        if not after:
            return b"" if data == before else None
        if not data.startswith(before):
            return None
        start = len(before)
        end = data.find(b"\r", start, start + _MAX_DIGITS + 1)
        digits = data[start:end]
        if end < 0 or not digits.isdigit() or not data.startswith(after, end):
            return None
        start = end + len(after)
        return data[start:] if len(data) - start == int(digits) else None


def know(head: bytes, exchange: Exchange, world: object) -> KnownHead | None:
    """What is to be remembered of an exchange that was admitted; `head` is what aiohttp parsed.
    None for what has more to it than its bytes."""
    if (
        not head
        or len(head) > _MAX_HEAD
        or exchange.close
        or exchange.length < 0
        or exchange.expects_continue
        or exchange.upgrade
    ):
        return None
    if b"content-length" not in exchange.head.noted:
        return KnownHead(head, b"", exchange, world)
    found = _LENGTH.search(head)
    if found is None:
        return None
    return KnownHead(head[: found.start(1)], head[found.end(1) :], exchange, world)
