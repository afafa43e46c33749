"""The two halves of a request: when one fails, the other is not left waiting for it.

Owns: which exchanges belong together, by the rooms they were told of; ending one for the other.
Does not own: reading the rooms (peers), how an exchange ends (proxy.forward).

A router waits for both halves and cancels neither: when a prefill has died its decode would hold
its place until a timeout of minutes, and the client with it; and the other way round.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from gatewayd.core.reply import LocalReply

if TYPE_CHECKING:
    from gatewayd.proxy.exchange import Exchange

OTHER_FAILED: Final = LocalReply(
    502, "upstream_error", "The other replica of this request did not answer properly"
)
REFUSED: Final = replace(OTHER_FAILED, message="The other replica of this request refused it")
REFUSAL_GRACE_S: Final = 1.0
# Rooms whose other half may still be on its way: both are sent at the same time.
_REMEMBERED: Final = 4096


class OtherHalfFailedError(Exception):
    """It failed before this one was read so far."""


class _Half:
    __slots__ = ("exchange", "prefills", "rooms")

    def __init__(self, exchange: Exchange, rooms: tuple[int, ...], *, prefills: bool) -> None:
        self.exchange = exchange
        self.rooms = rooms
        self.prefills = prefills


class Halves:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._by_exchange: dict[Exchange, _Half] = {}
        self._by_room: dict[tuple[int, bool], _Half] = {}  # (room, whether it is the prefill)
        self._failed: OrderedDict[tuple[int, bool], None] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Halves {len(self._by_exchange)} running>"

    def begin(self, exchange: Exchange, rooms: tuple[int, ...], *, prefills: bool) -> None:
        """Raises OtherHalfFailedError when there is nobody left to meet."""
        half = self._by_exchange[exchange] = _Half(exchange, rooms, prefills=prefills)
        for room in rooms:
            self._by_room[room, prefills] = half
        if any(self._failed.pop((room, not prefills), self) is None for room in rooms):
            raise OtherHalfFailedError

    def ended(self, exchange: Exchange) -> None:
        half = self._by_exchange.pop(exchange, None)
        if half is None:
            return
        others: dict[int, _Half] = {}
        failed = _failed(half)
        for room in half.rooms:
            self._by_room.pop((room, half.prefills), None)
            other = self._by_room.get((room, not half.prefills))
            if other is not None:
                others[id(other)] = other
            elif failed:
                self._failed[room, half.prefills] = None
        while len(self._failed) > _REMEMBERED:
            self._failed.popitem(last=False)
        if failed:
            refused = 400 <= exchange.status < 500
            for other in others.values():
                # What one refuses the other refuses too, and says why itself.
                delay = REFUSAL_GRACE_S if refused else 0
                reply = replace(REFUSED, status=exchange.status) if refused else OTHER_FAILED
                self._loop.call_later(delay, self._end, other, reply)

    def _end(self, half: _Half, reply: LocalReply) -> None:
        """Unless it is a decode that answers: then it has what it needs."""
        exchange = half.exchange
        if self._by_exchange.get(exchange) is not half or exchange.running is None:
            return
        if half.prefills or not exchange.first_byte_at:
            exchange.running.client_broke(reply)


def _failed(half: _Half) -> bool:
    """A router that leaves a decode has no use for its prefill either; it may leave a prefill
    before the end of an answer that says nothing."""
    exchange = half.exchange
    if exchange.closed_by == "client":
        return not half.prefills
    return exchange.closed_by != "-" or exchange.status >= 400
