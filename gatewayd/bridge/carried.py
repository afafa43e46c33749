"""A request that a router carries, again: the same head but for its id and its length.

Owns: telling that. Does not own: what a head means (handler), why it is worth it (proxy.known).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from gatewayd.proxy.known import LENGTH, MAX_DIGITS, KnownHead, body_of, can_be_known

if TYPE_CHECKING:
    from gatewayd.proxy.connection import ClientConnection
    from gatewayd.proxy.exchange import Exchange

_ID: Final = re.compile(rb"\r\n(?i:x-request-id): ?([-0-9A-Za-z]{1,128})\r\n")
_MAX_HOLE: Final = 128


class CarriedHead(KnownHead):
    """Three parts that stay, and between them the id and the length, in either order."""

    __slots__ = ("_end", "_id", "_id_first", "_middle", "_start")

    def __init__(
        self,
        head: bytes,
        id_at: tuple[int, int],
        length_at: tuple[int, int],
        exchange: Exchange,
        world: object,
    ) -> None:
        super().__init__(head, b"", exchange, world)
        first, second = sorted((id_at, length_at))
        self._start = head[: first[0]]
        self._middle = head[first[1] : second[0]]
        self._end = head[second[1] :]
        self._id_first = first == id_at
        self._id = b""  # of what was read last

    def again(self, connection: ClientConnection, body: bytes) -> Exchange:
        exchange = super().again(connection, body)
        exchange.request_id = self._id
        return exchange

    def read(self, data: bytes) -> bytes | int:
        if not data.startswith(self._start):
            return 0
        at = len(self._start)
        stop = data.find(b"\r", at, at + _MAX_HOLE + 1)
        if stop < 0 or not data.startswith(self._middle, stop):
            return 0
        first = data[at:stop]
        at = stop + len(self._middle)
        stop = data.find(b"\r", at, at + _MAX_HOLE + 1)
        if stop < 0 or not data.startswith(self._end, stop):
            return 0
        second = data[at:stop]
        id_, digits = (first, second) if self._id_first else (second, first)
        if not id_.replace(b"-", b"").isalnum() or not digits.isdigit() or len(digits) > MAX_DIGITS:
            return 0
        self._id = id_
        return body_of(data, stop + len(self._end), digits)


def carried(head: bytes, exchange: Exchange, world: object) -> KnownHead | None:
    """What is to be remembered of a request that was carried; `head` is what aiohttp parsed."""
    if not can_be_known(head, exchange):
        return None
    id_, length = _ID.search(head), LENGTH.search(head)
    if id_ is None or length is None:
        return None
    return CarriedHead(head, id_.span(1), length.span(1), exchange, world)
