"""Names whose certificate is on its way, and the handshakes that wait for one.

Owns: who waits, how many at most, telling that a client came for a name. Does not own: which names
those are (control), how a handshake is put off and begun again (net.tls_transport), for how long
(proxy.tls_server).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from typing import Final, Literal, Protocol

HELD_MAX: Final = 256  # handshakes; whoever comes beyond is refused at once
_TELL_AGAIN_S: Final = 60.0

# How waiting ended: the certificate came; none did in time, or none is coming any more; the client
# left.
Outcome = Literal["served", "refused", "gone"]


class Waiter(Protocol):
    def go_on(self) -> None:
        """The handshake is to be made now, with whatever certificate there is."""


class Awaited:
    """False while no name lacks its certificate. `on_sight` gets a name whose next try a client may
    bring forward, at most once a minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.on_sight: Callable[[str], None] = _nobody
        self.outcomes: dict[str, int] = {}  # `Outcome`s, cumulative
        self._coming: Collection[str] = frozenset()
        self._paused: Collection[str] = frozenset()
        self._held: dict[Waiter, str] = {}
        self._going: dict[Waiter, Outcome] = {}  # of those held, who goes on in the next turns
        self._told: dict[str, float] = {}  # when, of those that are paused
        self._closed = False

    def __repr__(self) -> str:
        return f"<Awaited {len(self._coming)} coming, {len(self._paused)} paused, {self.held} held>"

    def __bool__(self) -> bool:
        return bool(self._coming or self._paused)

    @property
    def held(self) -> int:
        return len(self._held)

    def expect(self, coming: Collection[str], paused: Collection[str]) -> None:
        """`coming` are asked for now; `paused` wait for their next try, and can be hastened. Whose
        name was coming and is no more, is refused; whoever hastens a name waits until it comes."""
        if self._closed:
            return
        before, self._coming, self._paused = self._coming, coming, paused
        self._told = {name: at for name, at in self._told.items() if name in paused}
        for waiter, name in self._held.items():
            if name not in coming and (name in before or name not in paused):
                self._let_go(waiter, "refused")

    def serve(self, served: Callable[[str], bool]) -> None:
        """Other certificates are there."""
        for waiter, name in self._held.items():
            if served(name):
                self._let_go(waiter, "served")

    def hold(self, name: str, waiter: Waiter) -> bool:
        """Whether it has to wait; `go_on` is called then."""
        paused = name in self._paused
        if paused:
            self._tell(name)
        elif name not in self._coming:
            return False
        if len(self._held) >= HELD_MAX:
            return False
        self._held[waiter] = name
        return True

    def _tell(self, name: str) -> None:
        now = self._clock()
        if now - self._told.get(name, -_TELL_AGAIN_S) >= _TELL_AGAIN_S:
            self._told[name] = now
            self.on_sight(name)

    def holds(self, waiter: Waiter) -> bool:
        return waiter in self._held

    def leave(self, waiter: Waiter, outcome: Outcome) -> None:
        """It waits no longer, whatever comes."""
        if self._held.pop(waiter, None) is not None:
            self._count(outcome)

    def close(self) -> None:
        """No certificate comes any more."""
        self.expect((), ())
        self._closed = True

    def _let_go(self, waiter: Waiter, outcome: Outcome) -> None:
        if not self._going:
            asyncio.get_running_loop().call_soon(self._next)
        self._going.setdefault(waiter, outcome)

    def _next(self) -> None:
        """One a turn of the loop: a hundred handshakes at once would stop streams for 50 ms."""
        waiter = next(iter(self._going))
        outcome = self._going.pop(waiter)
        if self._going:
            asyncio.get_running_loop().call_soon(self._next)
        if waiter in self._held:
            self.leave(waiter, outcome)
            waiter.go_on()

    def _count(self, outcome: Outcome) -> None:
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1


def _nobody(name: str) -> None:
    """Nobody is told."""
