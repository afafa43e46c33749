"""Bodies of known heads that do not come: their requests are read like any other after a moment.

Owns: how long such a body is waited for, one timer for all of them. Does not own: what waits, how
it is read (hearing).

A client may be refused whatever its body is, and may wait for that before it sends one.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from gatewayd.proxy.hearing import Hearing

_LATE_S: Final = 0.1  # an ACK that Nagle's algorithm waits for is delayed by 40 ms
_ROUND_S: Final = 0.05


class LateBodies:
    """`waiting` is added to, and taken from, by the connections themselves."""

    __slots__ = ("timer", "waiting")

    def __init__(self) -> None:
        self.waiting: set[Hearing] = set()
        self.timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<LateBodies {len(self.waiting)} waiting>"

    def look_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        self.timer = loop.call_later(_ROUND_S, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self.timer = None
        late = loop.time() - _LATE_S
        for connection in list(self.waiting):
            connection.body_is_late(late)
        if self.waiting and self.timer is None:
            self.look_soon(loop)
