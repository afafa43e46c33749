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
import time
from typing import TYPE_CHECKING, Final

from gatewayd.net.upstream import JOIN_SIZE
from gatewayd.proxy.exchange import Exchange
from gatewayd.proxy.late import LateBodies
from gatewayd.proxy.whole_body import NO_BODY, WholeBody

if TYPE_CHECKING:
    from gatewayd.proxy.connection import ClientConnection
    from gatewayd.proxy.hearing import Hearing

_MAX_HEAD: Final = 4096  # a connection may be idle for long, and keeps it
_MAX_HEADS: Final = 512  # of clients that come on a new connection
_HEAD_END: Final = b"\r\n\r\n"
LENGTH: Final = re.compile(rb"\r\n(?i:content-length): ?([0-9]{1,15})\r\n")
MAX_DIGITS: Final = 15
_new: Final = object.__new__


class KnownHead:
    """Valid in the world (snapshot) that it was admitted in, and from its peer only."""

    __slots__ = (
        "_facts",
        "after",
        "before",
        "line",
        "line_end",
        "line_replica",
        "line_via",
        "to_replica",
        "to_router",
        "world",
    )

    def __init__(self, before: bytes, after: bytes, exchange: Exchange, world: object) -> None:
        self.before = before  # all of the head, or up to the digits of its Content-Length
        self.after = after  # from behind them
        self.world = world
        # All that the first one knew of itself when it had been admitted, but what was its own.
        self._facts = {**vars(exchange), "connection": None, "payload": NO_BODY}
        self._facts |= {"request_id": exchange.given_id, "length": 0}
        self.to_replica = self.to_router = b""  # what the hop's head begins with, once made
        # What is the same in each access line of this replica and way, and in the end of each.
        self.line = self.line_replica = self.line_via = self.line_end = ""

    def __repr__(self) -> str:
        return "<KnownHead {method} {host}{target}>".format_map(self._facts)

    def again(self, connection: ClientConnection, body: bytes) -> Exchange:
        """Another one. To copy what is known of it costs a quarter of setting it one by one."""
        exchange = _new(Exchange)
        exchange.__dict__ = self._facts.copy()
        exchange.known = self
        exchange.connection = connection
        if body:
            exchange.payload = WholeBody(body)
            exchange.length = len(body)
        exchange.started_at = time.monotonic()
        return exchange

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
        end = data.find(b"\r", start, start + MAX_DIGITS + 1)
        digits = data[start:end]
        if end < 0 or not digits.isdigit() or not data.startswith(after, end):
            return 0
        start = end + len(after)
        if len(data) - start == int(digits):  # the most usual, without a call
            return data[start:]
        return body_of(data, start, digits)


class KnownHeads:
    """Those of the last clients of a process, for the next connection of theirs. `late` is for all
    connections."""

    __slots__ = ("_heads", "_world", "late")

    def __init__(self) -> None:
        self._heads: dict[tuple[str, bool, bytes, bytes], KnownHead] = {}  # oldest first
        self._world: object = None
        self.late = LateBodies()

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
        if not data.startswith(b"GET ") and (found := LENGTH.search(before)) is not None:
            before, after = before[: found.start(1)], before[found.end(1) :]
        return self._heads.get((connection.peer, connection.secure, before, after))


def body_of(data: bytes, start: int, digits: bytes) -> bytes | int:
    """The body that begins there and is that long; else as `KnownHead.read`."""
    missing = int(digits) - (len(data) - start)
    if not missing:
        return data[start:]
    return missing if 0 < missing <= JOIN_SIZE else 0


def can_be_known(head: bytes, exchange: Exchange) -> bool:
    """Whether there is no more to it than its bytes; `head` is what aiohttp parsed."""
    return (
        0 < len(head) <= _MAX_HEAD
        and exchange.http11
        and exchange.length >= 0
        and not exchange.expects_continue
        and not exchange.upgrade
    )


def know(head: bytes, exchange: Exchange, world: object) -> KnownHead | None:
    """What is to be remembered of an exchange that was admitted."""
    if not can_be_known(head, exchange):
        return None
    if b"content-length" not in exchange.head.noted:
        return KnownHead(head, b"", exchange, world)
    found = LENGTH.search(head)
    if found is None:
        return None
    return KnownHead(head[: found.start(1)], head[found.end(1) :], exchange, world)
