"""One gatewayd replaced by the next without a connection refused or a stream cut (SIGUSR2).

Owns: starting the successor, what the two say to each other, who is in charge when one of them
fails. Does not own: the descriptors' way (net.handover), the sockets (control.sockets), draining
(control.control).

    successor                     predecessor
    starts, reads its file        serves
    "state?"                 ->   lets admin calls end, writes what it knows, answers no more
                             <-   "state"
    reads it; its workers serve on the same sockets, beside the old ones
    "ready"                  ->   tells systemd, gives up the lock
                             <-   "take"
    owns everything               drains, exits

Until "take" the predecessor is in charge: a successor that fails, dies or is late is ended, and the
predecessor goes on. A predecessor that dies leaves its successor in charge.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gatewayd.control.slot import describe_exit
from gatewayd.control.spawn import PASSED_BY_SYSTEMD
from gatewayd.control.survivors import StateDir, dismiss
from gatewayd.net.handover import VARIABLE, Inherited, Open, describe
from gatewayd.net.notify import Notifier

_log = logging.getLogger(__name__)

READY_TIMEOUT_S: Final = 60.0
_AFTER_DRAIN_S: Final = 10.0


class _FailedError(Exception):
    """The successor did not come as far as that; the text says how it ended."""


class _Line:
    """Words, one a line. Unknown ones are passed over: the other end may be of another version."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, sock: socket.socket) -> _Line:
        return cls(*await asyncio.open_connection(sock=sock))

    def say(self, word: str) -> None:
        self._writer.write(f"{word}\n".encode())

    async def hears(self, word: str) -> bool:
        """False: the other end is gone."""
        try:
            while line := await self._reader.readline():
                if line.decode(errors="replace").strip() == word:
                    return True
        except OSError:
            pass
        return False

    def close(self) -> None:
        self._writer.close()


class Predecessor:
    """Who handed us its sockets, as long as it lives."""

    def __init__(self, inherited: Inherited) -> None:
        self._inherited = inherited
        self._line: _Line | None = None

    def __repr__(self) -> str:
        return f"<Predecessor {self._inherited!r}>"

    @property
    def lock_fd(self) -> int:
        return self._inherited.lock_fd

    @property
    def sockets(self) -> Inherited:
        return self._inherited

    async def hand_over_state(self) -> None:
        """Returns when it writes nothing any more."""
        self._line = await _Line.over(self._inherited.channel)
        self._line.say("state?")
        await self._line.hears("state")

    async def leave(self) -> None:
        """We serve: returns when it has given up, so that we own everything."""
        assert self._line is not None
        self._line.say("ready")
        await self._line.hears("take")

    async def gone(self) -> None:
        assert self._line is not None
        await self._line.hears("")

    def close(self) -> None:
        self._inherited.close()
        if self._line is None:
            self._inherited.channel.close()
        else:
            self._line.close()


class Successor:
    """A gatewayd that we started to take our place."""

    def __init__(self, popen: subprocess.Popen[bytes], line: _Line) -> None:
        self.pid = popen.pid
        self._popen = popen
        self._line = line

    def __repr__(self) -> str:
        return f"<Successor pid {self.pid}>"

    @classmethod
    async def start(
        cls,
        argv: Sequence[str],
        environ: Mapping[str, str],
        opened: Iterable[Open],
        lock_fd: int,
    ) -> Successor:
        """Raises OSError."""
        ours, theirs = socket.socketpair()
        try:
            text, fds = describe(opened, channel_fd=theirs.fileno(), lock_fd=lock_fd)
            kept = {name: value for name, value in environ.items() if name not in PASSED_BY_SYSTEMD}
            popen = subprocess.Popen(  # noqa: ASYNC220 - it outlives our loop, which would end it
                argv, pass_fds=fds, stdin=subprocess.DEVNULL, env={**kept, VARIABLE: text}
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        return cls(popen, await _Line.over(ours))

    def say(self, word: str) -> None:
        self._line.say(word)

    async def says(self, word: str) -> None:
        """Raises _FailedError when it is gone before."""
        if not await self._line.hears(word):
            status = await asyncio.to_thread(self._popen.wait)
            raise _FailedError(describe_exit(status))

    async def end(self, timeout: float) -> None:
        """What its workers have accepted already ends whole."""
        if self._popen.poll() is None:
            self._popen.terminate()
            try:
                await asyncio.to_thread(self._popen.wait, timeout)
            except subprocess.TimeoutExpired:
                _log.error("pid %d did not end within %g s and is killed", self.pid, timeout)
                self._popen.kill()
                await asyncio.to_thread(self._popen.wait)
        self._line.close()


@dataclass(frozen=True, slots=True)
class Holding:
    """What the one in charge has to do with its own parts."""

    opened: Callable[[], list[Open]]
    freeze: Callable[[], Awaitable[None]]  # the state is written, and changed no more
    thaw: Callable[[], Awaitable[None]]
    pids: Callable[[], Iterable[int]]  # the data plane
    taken: Callable[[], None]
    drain_timeout: Callable[[], float]


class Succession:
    """`argv` is how this process was started; None: it cannot be started again that way."""

    def __init__(
        self,
        argv: Sequence[str] | None,
        environ: Mapping[str, str],
        state_dir: StateDir,
        notifier: Notifier,
        holding: Holding,
    ) -> None:
        self.taken = False
        self.fault: str | None = None  # why the last try failed
        self.tries = 0
        self._argv = argv
        self._environ = environ
        self._state_dir = state_dir
        self._notifier = notifier
        self._holding = holding
        self._task: asyncio.Task[None] | None = None
        self._again = False  # asked for while one that failed is cleared away
        self._in_charge: Successor | None = None

    def __repr__(self) -> str:
        how = "taken" if self.taken else "under way" if self.under_way else "not asked for"
        return f"<Succession {how}>"

    @property
    def under_way(self) -> bool:
        return self._task is not None and not self._task.done()

    def as_json(self) -> dict[str, Any]:
        return {"tries": self.tries, "under_way": self.under_way, "fault": self.fault}

    def begin(self, *, serving: bool) -> None:
        self.tries += 1
        if self._argv is None:
            self.fault = "only `gatewayd run` can be replaced while it runs"
        elif not serving:
            self.fault = "this gateway is starting or stopping"
        elif os.getpid() == 1:
            self.fault = "pid 1 cannot be replaced: its container would end with it"
        elif self.under_way:
            if self.fault is None:
                _log.warning("SIGUSR2: a successor is starting already")
            else:
                _log.info("SIGUSR2: tried again as soon as the one that failed is cleared away")
                self._again = True
            return
        else:
            self.fault = None
            self._task = asyncio.create_task(self._run(self._argv), name="succession")
            return
        _log.error("SIGUSR2: %s", self.fault)

    async def aclose(self) -> None:
        """A successor that is not in charge yet ends too."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, argv: Sequence[str]) -> None:
        self._again = True
        while self._again:
            self._again = False
            self.fault = None
            await self._try(argv)

    async def _try(self, argv: Sequence[str]) -> None:
        _log.info("SIGUSR2: starting a successor")
        try:
            successor = await Successor.start(
                argv, self._environ, self._holding.opened(), self._state_dir.lock_fd
            )
        except OSError as error:
            self.fault = f"could not be started: {error}"
            _log.error("the successor %s; this one goes on", self.fault)
            return
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                await successor.says("state?")
            await self._holding.freeze()  # waits for calls: that is no fault of the successor's
            async with asyncio.timeout(READY_TIMEOUT_S):
                successor.say("state")
                await successor.says("ready")
            self._state_dir.release()  # it has the lock itself: a later one need not wait for us
            await self._notifier.succeeded_by(successor.pid)
        except _FailedError as error:
            await self._go_on(successor, str(error))
        except TimeoutError:
            await self._go_on(successor, f"is not ready after {READY_TIMEOUT_S:g} s")
        except asyncio.CancelledError:
            await successor.end(self._holding.drain_timeout() + _AFTER_DRAIN_S)
            await self._dismiss_its_workers()
            raise
        else:
            self.taken = True
            # Its line is open as long as we live: the end of it tells that we have drained. Newer
            # Pythons (3.11.7, not 3.11.2) close a stream that nobody holds.
            self._in_charge = successor
            successor.say("take")
            _log.info("pid %d has taken over; finishing what runs", successor.pid)
            self._holding.taken()

    async def _go_on(self, successor: Successor, why: str) -> None:
        self.fault = why
        _log.error("the successor (pid %d) %s; this one goes on", successor.pid, why)
        await successor.end(self._holding.drain_timeout() + _AFTER_DRAIN_S)
        # Read before it is written again.
        dismissal = asyncio.ensure_future(self._dismiss_its_workers())
        await asyncio.sleep(0)
        await self._holding.thaw()
        await dismissal

    async def _dismiss_its_workers(self) -> None:
        """Those of a successor that was killed: they serve on until they are told."""
        ours = set(self._holding.pids())
        theirs = [process for process in self._state_dir.survivors() if process.pid not in ours]
        await dismiss(theirs, self._holding.drain_timeout() + _AFTER_DRAIN_S)
