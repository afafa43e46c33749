"""Requests of routers that are decisions: claimed for a replica, held open, finished on word.

Owns: the open claims and the links to the workers that asked. Does not own: the router's
connections (connection), the exchange with the replica (the worker's own).
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from typing import TYPE_CHECKING, Final

from gatewayd.core.steering import HELLO, asking_slot, claim, read_finish
from gatewayd.net.link import Link

if TYPE_CHECKING:
    from gatewayd.bridge.connection import RouterConnection

# After so long an answer is begun, whose end is the exchange's: until then a router keeps the
# request, its own copies of the body among it, and the first head of an answer is its leave to
# forget them. What it holds at once in this time, it keeps as holes among what stays.
_BEGIN_AFTER_S: Final = 0.02


class Claims:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._links: dict[int, Link] = {}
        self._open: dict[bytes, Claim] = {}
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
        link = Link(socket.socket(fileno=fd), self._on_frame, lambda: self._lost(slot), self._loop)
        self._links[slot] = link
        link.send(HELLO)

    def begin(self, connection: RouterConnection, token: bytes, replica: str) -> bool:
        """Tell the worker that asked, and hold the router's request open. False: nobody asks."""
        slot = asking_slot(token)
        link = None if slot is None else self._links.get(slot)
        if slot is None or link is None or token in self._open:
            return False
        connection.held = self._open[token] = Claim(self, connection, token, slot, replica)
        link.send(claim(token, replica))
        self._young.append((self._loop.time() + _BEGIN_AFTER_S, token))
        if self._timer is None:
            self._timer = self._loop.call_later(_BEGIN_AFTER_S, self._begin_old)
        return True

    def _begin_old(self) -> None:
        """One timer for all: most claims end before they are due."""
        loop, young = self._loop, self._young
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


class Claim:
    """A router's request that waits for its end; the router counts it as running meanwhile."""

    __slots__ = ("_begun", "_claims", "_connection", "_replica", "_token", "slot")

    def __init__(
        self, claims: Claims, connection: RouterConnection, token: bytes, slot: int, replica: str
    ) -> None:
        self._claims = claims
        self._connection = connection
        self._token = token
        self._replica = replica
        self._begun = False
        self.slot = slot

    def begin_answer(self) -> None:
        self._begun = self._connection.begin_answer(self._replica)

    def finish(self) -> None:
        self._claims.forget(self._token)
        self._connection.let_go(begun=self._begun)

    def router_gone(self) -> None:
        """The router has given the request up; the worker notices by itself."""
        self._claims.forget(self._token)
