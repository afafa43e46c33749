"""Changes of the registry are kept before they are answered, or they are not made.

Owns: when the state is saved, and undoing what could not be. Does not own: the files
(control.store), which part of the state it is (control.saved).

One save at a time, in a thread; whoever asks meanwhile shares the next one. When a save fails, the
state goes back to what was saved last: everything changed since is undone, and whoever waits for it
is told.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from gatewayd.control.saved import Saved, put_back, take
from gatewayd.control.state import State

_log = logging.getLogger(__name__)


class NotSavedError(Exception):
    """The change could not be saved, and was undone; the text says why."""


class Saves(Protocol):
    def save(self, saved: Saved) -> None:
        """Raises OSError."""
        ...


class Keeper:
    def __init__(self, state: State, store: Saves) -> None:
        self._state = state
        self._store = store
        self._last = Saved()
        self._waiting: list[asyncio.Future[None]] = []
        self._writer: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Keeper {len(self._waiting)} wait>"

    def begin_with(self, saved: Saved) -> None:
        """What the disk has, and the state as well."""
        self._last = saved

    async def keep(self) -> None:
        """Returns when everything changed so far is on disk. Raises NotSavedError."""
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        if self._writer is None:
            self._writer = asyncio.create_task(self._write(), name="save the registry")
        await waiting

    async def aclose(self) -> None:
        """What was begun is finished: a thread cannot be called back."""
        if self._writer is not None:
            await asyncio.gather(self._writer, return_exceptions=True)

    async def _write(self) -> None:
        try:
            while self._waiting:
                await asyncio.sleep(0)  # whoever calls in the same turn of the loop comes along
                served, self._waiting = self._waiting, []
                fault = await self._save()
                if fault is not None:
                    # Also those that changed something while the save was failing.
                    served += self._waiting
                    self._waiting = []
                for waiting in served:
                    if not waiting.done():
                        if fault is None:
                            waiting.set_result(None)
                        else:
                            waiting.set_exception(fault)
        finally:
            self._writer = None

    async def _save(self) -> NotSavedError | None:
        saved = take(self._state)
        try:
            await asyncio.to_thread(self._store.save, saved)
        except OSError as error:
            put_back(self._last, self._state)
            why = f"cannot save the state: {error.strerror or error}"
            _log.error("%s; nothing was changed", why)
            return NotSavedError(f"{why}; nothing was changed")
        except Exception as error:
            put_back(self._last, self._state)
            _log.exception("cannot save the state; nothing was changed")
            return NotSavedError(f"cannot save the state: {type(error).__name__}")
        self._last = saved
        return None
