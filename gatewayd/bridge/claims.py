"""Requests of routers that are decisions: claimed for a replica, held open, finished on word.

Owns: the open claims and the links to the workers that asked. Does not own: ports (main), the
exchange with the replica (the worker's own).
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Final

from aiohttp.streams import EMPTY_PAYLOAD

from gatewayd.core.reply import LocalReply
from gatewayd.core.steering import HELLO, asking_slot, claim, read_finish
from gatewayd.net.link import Link
from gatewayd.proxy.hop import FAILURE_FIELD

if TYPE_CHECKING:
    from gatewayd.proxy.exchange import Exchange
    from gatewayd.proxy.plane import Plane

_DONE: Final = LocalReply(200, message="done")
_NOBODY: Final = LocalReply(
    503, message="nobody asks", headers=((FAILURE_FIELD, b"unclaimed"),)
)  # fmt: skip


class Claims:
    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._links: dict[int, Link] = {}
        self._open: dict[bytes, _Claim] = {}

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
        held = self._open[token] = _Claim(self, exchange, token, slot)
        exchange.running = held
        if exchange.payload.is_eof():
            exchange.payload.read_nowait()  # a large one has stopped the reading of its connection
            _slim(exchange)
        else:
            held.discarding = self._plane.spawn(_discard(exchange))
        link.send(claim(token, replica))

    def forget(self, token: bytes) -> None:
        self._open.pop(token, None)

    def close(self) -> None:
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

    __slots__ = ("_claims", "_exchange", "_token", "discarding", "slot")

    def __init__(self, claims: Claims, exchange: Exchange, token: bytes, slot: int) -> None:
        self._claims = claims
        self._exchange = exchange
        self._token = token
        self.slot = slot
        self.discarding: asyncio.Task[None] | None = None

    def finish(self) -> None:
        self._leave()
        self._exchange.answer(_DONE)

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
