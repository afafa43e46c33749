"""An exchange that something is awaited for before any attempt is made.

Owns: the end of the waiting when its client leaves. Does not own: what is awaited (handler,
models).
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gatewayd.core.reply import LocalReply
    from gatewayd.proxy.exchange import Exchange
    from gatewayd.proxy.plane import Plane


class Waiting:
    """Stands in `exchange.running` from `_wait` on; whoever goes on puts something else there."""

    _task: asyncio.Task[None] | None = None

    def __init__(self, plane: Plane, exchange: Exchange) -> None:
        self._plane = plane
        self._exchange = exchange

    def _wait(self, work: Coroutine[Any, Any, None]) -> None:
        self._exchange.running = self
        self._task = self._plane.spawn(work, self._exchange)

    def client_gone(self) -> None:
        self._exchange.status = 499
        self._exchange.closed_by = "client"
        if self._task is not None:
            self._task.cancel()

    def client_broke(self, reply: LocalReply) -> None:
        """The request body broke off its framing."""
        self.client_gone()
        self.end(reply)

    def end(self, reply: LocalReply) -> None:
        if self._task is not None:
            self._task.cancel()
        self._exchange.running = None
        self._exchange.answer(reply)

    def client_paused(self) -> None:
        """Nothing is being sent yet."""

    def client_resumed(self) -> None:
        """Nothing is being sent yet."""
