"""Requests of routers that are decisions: claimed for a replica, held open, finished on word.

Owns: the open claims and the links to the workers that asked. Does not own: ports (main), the
exchange with the replica (the worker's own).
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from typing import TYPE_CHECKING, Final

from aiohttp.streams import EMPTY_PAYLOAD

from gatewayd.core.reply import LocalReply
from gatewayd.core.steering import HELLO, asking_slot, claim, read_finish
from gatewayd.net.link import Link
from gatewayd.proxy.hop import FAILURE_FIELD, REPLICA_FIELD

if TYPE_CHECKING:
    from gatewayd.proxy.exchange import Exchange
    from gatewayd.proxy.plane import Plane

_DONE: Final = LocalReply(200, message="done")
# After so long an answer is begun, whose end is the exchange's: until then a router keeps the
# request, its own copies of the body among it, and the first head of an answer is its leave to
# forget them (measured: 58 -> 38 KiB a stream at a prompt of 1 kB, 130 -> 48 KiB at 20 kB).
_BEGIN_AFTER_S: Final = 0.25
_BEGUN: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
    b"%b: %b\r\n\r\n"
)
_ENDED: Final = b"0\r\n\r\n"
_NOBODY: Final = LocalReply(
    503, message="nobody asks", headers=((FAILURE_FIELD, b"unclaimed"),)
)  # fmt: skip


class Claims:
    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._links: dict[int, Link] = {}
        self._open: dict[bytes, _Claim] = {}
        self._young: deque[tuple[float, bytes]] = deque()  # (due, token), oldest first
        self._timer: asyncio.TimerHandle | None = None  # while there are young ones

    def __repr__(self) -> str:
        return f"<Claims {len(self._open)} open, {len(self._links)} workers>"

    def link(self, slot: int, fd: int) -> None:
        """A worker holds `slot` now; what its predecessor had asked is over."""
        old = self._links.pop(slot, None)
        if old is not None:
            old.close()
            self._finish_all(slot)
        link = Link(
            socket.socket(fileno=fd), self._on_frame, lambda: self._lost(slot), self._plane.loop
        )
        self._links[slot] = link
        link.send(HELLO)

    def begin(self, exchange: Exchange, token: bytes, replica: str) -> None:
        """Tell the worker that asked, and hold the router's request open."""
        slot = asking_slot(token)
        link = None if slot is None else self._links.get(slot)
        if link is None or token in self._open:
            exchange.answer(_NOBODY)
            return
        assert slot is not None
        held = self._open[token] = _Claim(self, exchange, token, slot, replica)
        exchange.running = held
        if exchange.payload.is_eof():
            exchange.payload.read_nowait()  # a large one has stopped the reading of its connection
            _slim(exchange)
        else:
            held.discarding = self._plane.spawn(_discard(exchange))
        link.send(claim(token, replica))
        self._young.append((self._plane.loop.time() + _BEGIN_AFTER_S, token))
        if self._timer is None:
            self._timer = self._plane.loop.call_later(_BEGIN_AFTER_S, self._begin_old)

    def _begin_old(self) -> None:
        """One timer for all: most claims end before they are due."""
        loop, young = self._plane.loop, self._young
        now = loop.time()
        while young and young[0][0] <= now:
            held = self._open.get(young.popleft()[1])
            if held is not None:
                held.begin_answer()
        self._timer = loop.call_at(young[0][0], self._begin_old) if young else None

    def forget(self, token: bytes) -> None:
        self._open.pop(token, None)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for link in self._links.values():
            link.close()

    def _on_frame(self, frame: bytes) -> None:
        token = read_finish(frame)
        held = None if token is None else self._open.get(token)
        if held is not None:
            held.finish()

    def _lost(self, slot: int) -> None:
        self._links.pop(slot, None)
        self._finish_all(slot)

    def _finish_all(self, slot: int) -> None:
        for held in [held for held in self._open.values() if held.slot == slot]:
            held.finish()


class _Claim:
    """A router's request that waits for its end; the router counts it as running meanwhile."""

    __slots__ = ("_begun", "_claims", "_exchange", "_replica", "_token", "discarding", "slot")

    def __init__(
        self, claims: Claims, exchange: Exchange, token: bytes, slot: int, replica: str
    ) -> None:
        self._claims = claims
        self._exchange = exchange
        self._token = token
        self._replica = replica
        self._begun = False
        self.slot = slot
        self.discarding: asyncio.Task[None] | None = None

    def begin_answer(self) -> None:
        """Not before the request has been read: an early answer may end a router's upload."""
        exchange = self._exchange
        transport = exchange.connection.transport
        if transport is not None and exchange.body_arrived and exchange.http11:
            self._begun = True
            transport.write(_BEGUN % (REPLICA_FIELD, self._replica.encode()))

    def finish(self) -> None:
        self._leave()
        exchange = self._exchange
        if not self._begun:
            exchange.answer(_DONE)
            return
        if exchange.connection.transport is not None:
            exchange.connection.transport.write(_ENDED)
        exchange.connection.exchange_ended(exchange)

    def client_gone(self) -> None:
        """The router has given the request up; the worker notices by itself."""
        self._leave()

    def client_broke(self, reply: LocalReply) -> None:
        self._leave()
        self._exchange.answer(reply)

    def client_paused(self) -> None:
        """Nothing is being sent yet."""

    def client_resumed(self) -> None:
        """Nothing is being sent yet."""

    def _leave(self) -> None:
        self._claims.forget(self._token)
        if self.discarding is not None:
            self.discarding.cancel()


async def _discard(exchange: Exchange) -> None:
    """The replica gets the client's own bytes from the worker; the router's copy goes nowhere."""
    while await exchange.payload.readany():
        pass
    _slim(exchange)


def _slim(exchange: Exchange) -> None:
    """What was read of the request has done its duty, and thousands of these may be held."""
    exchange.payload = EMPTY_PAYLOAD
    exchange.message = None  # type: ignore[assignment]  # nobody asks for it any more
    exchange.head = None  # type: ignore[assignment]
