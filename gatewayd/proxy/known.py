"""A head that comes again: what it means is not worked out twice.

Owns: telling that bytes are the same head, and what followed from it. Does not own: what a head
means (handler), which limits it meets each time (admit).

A client says the same head again and again, but for the length of the body: on the connection that
it keeps, or on a new one each time. aiohttp has parsed it once, and the edge has admitted it; the
same bytes of the same client, in the same world, mean the same. So a head is compared, which costs
a tenth of parsing and judging it, and only what depends on the moment (limits, an authority's word,
who is least busy) is asked anew.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, cast

from gatewayd.net.upstream import JOIN_SIZE
from gatewayd.proxy.exchange import Exchange
from gatewayd.proxy.payload import NO_BODY, WholeBody

if TYPE_CHECKING:
    from aiohttp.http_parser import RawRequestMessage

    from gatewayd.core.headers import RequestHead
    from gatewayd.core.ratelimit import Rule
    from gatewayd.proxy.connection import ClientConnection
    from gatewayd.proxy.hearing import Hearing
    from gatewayd.proxy.served import Served

_MAX_HEAD: Final = 4096  # a connection may be idle for long, and keeps it
_MAX_HEADS: Final = 512  # of clients that come on a new connection
_HEAD_END: Final = b"\r\n\r\n"
_LENGTH: Final = re.compile(rb"\r\n(?i:content-length): ?([0-9]{1,15})\r\n")
_MAX_DIGITS: Final = 15


class KnownExchange(Exchange):
    """An exchange whose head has been here before. Who it was admitted for is not asked again."""

    __slots__ = ()

    def __init__(self, connection: Hearing, known: KnownHead, body: bytes) -> None:
        payload = WholeBody(body) if body else NO_BODY
        self._begin(cast("ClientConnection", connection), known.message, payload)
        self.known = known
        self.head = known.head
        self.host = known.host
        self.secure = known.secure
        self.served = known.served
        self.target = self.upstream_target = known.target
        self.client = known.client
        self.http11 = True
        self.close = known.close
        self.length = len(body)
        self.request_id = self.given_id = known.request_id
        self.rule_path = "/"
        self.bucket = known.bucket
        self.forwarded_lines = known.forwarded_lines
        self.token_name = known.token_name


class KnownHead:
    """Valid in the world (snapshot) that it was admitted in, and from its peer only."""

    __slots__ = (
        "after",
        "before",
        "bucket",
        "client",
        "close",
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
        self.close = exchange.close
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

    def read(self, data: bytes) -> bytes | int:
        """The body, when `data` is this head with its whole body and nothing else. Else how much
        of the body is still to come; 0 when it is something else, or that is too much to wait for.
        """
        before, after = self.before, self.after
        if not after:
            return b"" if data == before else 0
        if not data.startswith(before):
            return 0
        start = len(before)
        end = data.find(b"\r", start, start + _MAX_DIGITS + 1)
        digits = data[start:end]
        if end < 0 or not digits.isdigit() or not data.startswith(after, end):
            return 0
        start = end + len(after)
        missing = int(digits) - (len(data) - start)
        if not missing:
            return data[start:]
        return missing if 0 < missing <= JOIN_SIZE else 0


class KnownHeads:
    """Those of the last clients of a process, for the next connection of theirs."""

    __slots__ = ("_heads", "_world")

    def __init__(self) -> None:
        self._heads: dict[tuple[str, bool, bytes, bytes], KnownHead] = {}  # oldest first
        self._world: object = None

    def __repr__(self) -> str:
        return f"<KnownHeads [{len(self._heads)}]>"

    def keep(self, known: KnownHead, connection: Hearing) -> None:
        if known.world is not self._world:
            self._world = known.world
            self._heads.clear()
        elif len(self._heads) >= _MAX_HEADS:
            del self._heads[next(iter(self._heads))]
        self._heads[connection.peer, connection.secure, known.before, known.after] = known

    def find(self, data: bytes, connection: Hearing) -> KnownHead | None:
        """The head that `data` seems to begin with; `KnownHead.read` judges."""
        size = data.find(_HEAD_END, 0, _MAX_HEAD) + 4
        if size < 4 or not self._heads:
            return None
        before, after = data[:size], b""
        if not data.startswith(b"GET ") and (found := _LENGTH.search(before)) is not None:
            before, after = before[: found.start(1)], before[found.end(1) :]
        return self._heads.get((connection.peer, connection.secure, before, after))


def know(head: bytes, exchange: Exchange, world: object) -> KnownHead | None:
    """What is to be remembered of an exchange that was admitted; `head` is what aiohttp parsed.
    None for what has more to it than its bytes."""
    if (
        not head
        or len(head) > _MAX_HEAD
        or not exchange.http11
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
