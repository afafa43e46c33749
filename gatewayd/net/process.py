"""A child process that is kept running.

Owns: the readiness deadline, restart with backoff, its state for status pages, its last words.
Does not own: one run of it (net.child), what is run and when it counts as ready (the caller),
the schedule (core.reconcile).
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final, Literal

from gatewayd.core.reconcile import backoff
from gatewayd.net.child import Child, Command, Exit

__all__ = ["Child", "Command", "Exit", "State", "SupervisedProcess"]

log = logging.getLogger(__name__)

State = Literal["starting", "ready", "restarting", "failed", "stopped"]

FAILED_AFTER: Final = 5  # starts in a row that never became ready; trying goes on


class SupervisedProcess:
    """A process that is started again whenever it ends, until `aclose`.

    `prepare(n)` gives the command of start number n (from 0); an OSError counts as a failed
    start. `ready(child)` returns when the child is ready; raising, or the deadline, ends that run.
    Starts are at least `backoff(failures, first_delay, max_delay)` apart, so one that ran for
    long is replaced at once; after `stable_after` seconds its failures are forgotten.
    Descriptors for `pass_fds` belong to the caller, who may close them from `ready` or `on_exit`.
    """

    def __init__(
        self,
        name: str,
        prepare: Callable[[int], Command],
        *,
        ready: Callable[[Child], Awaitable[None]] | None = None,
        ready_timeout: float = 10.0,
        stop_timeout: float = 10.0,
        first_delay: float = 0.1,
        max_delay: float = 5.0,
        stable_after: float = 10.0,
        on_up: Callable[[Child], None] | None = None,
        on_exit: Callable[[Exit], None] | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> None:
        self.name = name
        self.state: State = "starting"
        self.starts = 0
        self.last_exit: Exit | None = None
        self._prepare = prepare
        self._is_ready = ready
        self._ready_timeout = ready_timeout
        self._stop_timeout = stop_timeout
        self._first_delay = first_delay
        self._max_delay = max_delay
        self._stable_after = stable_after
        self._on_up = on_up
        self._on_exit = on_exit
        self._on_line = on_line
        self._child: Child | None = None
        self._task: asyncio.Task[None] | None = None
        self._up = asyncio.Event()
        self._attempt = 0
        self._unready = 0
        self._reason = ""

    @property
    def restarts(self) -> int:
        return max(0, self.starts - 1)

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child is not None else None

    @property
    def words(self) -> tuple[str, ...]:
        """The last lines of the run that is, or else of the one that was."""
        words = self._child.words if self._child is not None else ()
        return words or (self.last_exit.words if self.last_exit is not None else ())

    def start(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name=self.name)

    async def wait_ready(self, timeout: float) -> bool:
        try:
            async with asyncio.timeout(timeout):
                await self._up.wait()
        except TimeoutError:
            return False
        return True

    def kill(self, reason: str) -> None:
        """End this run at once, for a process that hangs; the next start follows."""
        if self._child is not None and self._child.code is None:
            self._reason = reason
            self._child.send(signal.SIGKILL)

    async def aclose(self) -> None:
        """Stop it for good; when this is cancelled, without grace."""
        if self._task is None:
            self.state = "stopped"
            return
        self._task.cancel()
        try:
            await asyncio.wait({self._task})
        except asyncio.CancelledError:
            self.kill("stopped in a hurry")
            raise

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                started = loop.time()
                try:
                    self._note(await self._one_run(started))
                except Exception:
                    log.exception("%s: supervision failed, starting it again", self.name)
                wait_s = (
                    started
                    - loop.time()
                    + backoff(self._attempt, self._first_delay, self._max_delay)
                )
                self._attempt += 1
                await asyncio.sleep(max(0.0, wait_s))
        finally:
            self.state = "stopped"

    async def _one_run(self, started: float) -> Exit:
        self.starts += 1
        self._reason = ""
        try:
            command = self._prepare(self.starts - 1)
            child = await Child.spawn(self.name, command, self._on_line)
        except OSError as error:
            return Exit(None, (), reason=_say(error))
        self._child = child
        was_ready = False
        try:
            was_ready = await self._becomes_ready(child)
            if was_ready:
                self.state = "ready"
                self._unready = 0
                self._up.set()
                if self._on_up is not None:
                    self._on_up(child)
                await child.wait()
                await child.finish()
        finally:
            self._up.clear()
            if child.code is None:
                await child.stop(self._stop_timeout)
            self._child = None
        ran_s = asyncio.get_running_loop().time() - started
        return Exit(child.code, child.words, ran_s, was_ready, self._reason)

    async def _becomes_ready(self, child: Child) -> bool:
        """False, with the reason kept, when it ended, failed or took too long before that."""
        if self._is_ready is None:
            return True
        ready = asyncio.ensure_future(self._is_ready(child))
        ended = asyncio.ensure_future(child.wait())
        try:
            await asyncio.wait(
                {ready, ended}, timeout=self._ready_timeout, return_when=asyncio.FIRST_COMPLETED
            )
            if ended.done():
                await child.finish()
                return False
            if not ready.done():
                self._reason = f"not ready within {self._ready_timeout:g} s"
                return False
            if ready.cancelled():
                self._reason = "not ready: given up"
                return False
            if (error := ready.exception()) is not None:
                self._reason = f"not ready: {_say(error)}"
                return False
            return True
        finally:
            ready.cancel()
            ended.cancel()
            await asyncio.gather(ready, ended, return_exceptions=True)

    def _note(self, end: Exit) -> None:
        self.last_exit = end if end.words else replace(end, words=(str(end),))
        self._unready = 0 if end.was_ready else self._unready + 1
        if end.was_ready and end.ran_s >= self._stable_after:
            self._attempt = 0
        self.state = "failed" if self._unready >= FAILED_AFTER else "restarting"
        last = f": {end.words[-1]}" if end.words else ""
        log.warning("%s %s%s", self.name, end, last)
        if self._on_exit is not None:
            self._on_exit(end)

    def __repr__(self) -> str:
        return f"<SupervisedProcess {self.name} {self.state} pid {self.pid} #{self.starts}>"


def _say(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}"
    return str(error) or type(error).__name__
