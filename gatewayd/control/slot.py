"""One slot of the data plane: the process that holds it now, and its successor when it dies.

Owns: the channel, acknowledgements, death and the delay before the next try. Does not own: how a
process is started (control.spawn), when a silent one is given up (control.watch), what is published
(control.publisher).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from gatewayd.control.spawn import Argv, Role, Spawned, own_command, spawn
from gatewayd.control.watch import Watch
from gatewayd.core.messages import Ack, Configure, Drain, Message, Ready, Report
from gatewayd.core.reconcile import backoff
from gatewayd.net.channel import Channel, ChannelClosedError

_log = logging.getLogger(__name__)

# (slot, incarnation) -> its first frame and the descriptors behind that of its alarm
Configurer = Callable[["Slot", int], tuple[Configure, list[int]]]

_YOUNG_S = 5.0  # whoever dies before this age waits longer and longer for a successor
_BACKOFF_FIRST_S, _BACKOFF_LAST_S = 0.1, 5.0
_LAST_WORDS_S = 1.0


def _nothing() -> None:
    """Nobody has a use for it."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the owner of a slot wants to hear."""

    spawned: Callable[[SlotProcess], None]  # it has its `Configure` and may be sent more
    ready: Callable[[SlotProcess], None]
    acked: Callable[[SlotProcess], None]
    reported: Callable[[SlotProcess, Report], None]
    died: Callable[[SlotProcess], None]
    heard: Callable[[], None] = _nothing  # whatever it said: control is awake


class SlotProcess:
    """One incarnation. `acked` is the newest snapshot version it acknowledged."""

    def __init__(self, role: Role, slot: int, incarnation: int, popen: subprocess.Popen[bytes]):
        self.role: Role = role
        self.slot = slot
        self.incarnation = incarnation
        self.pid = popen.pid
        self.popen = popen
        self.channel: Channel | None = None
        self.born = time.monotonic()
        self.ready = False
        self.alive = True
        self.acked = 0
        self.connections = 0
        self.sent = 0  # newest version on its way
        self.ports_sent: set[int] = set()  # bridge only: whose descriptors it holds
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    def __repr__(self) -> str:
        state = "ready" if self.ready else "starting" if self.alive else "dead"
        return f"<{self.role} {self.slot} pid {self.pid} {state} v{self.acked}>"

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Queue a frame; for a process that is gone it is dropped, its death is on the way."""
        if self.channel is not None:
            try:
                self.channel.send(message, fds)
            except ChannelClosedError:
                pass

    def when_acked(self, version: int) -> asyncio.Future[None]:
        """Done when `version` is acknowledged, or when the process can no longer do so."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.acked >= version or not self.alive:
            future.set_result(None)
        else:
            self._waiting.append((version, future))
        return future

    def acknowledge(self, version: int) -> None:
        self.acked = max(self.acked, version)
        self._release()

    def kill(self, signal_number: int = signal.SIGKILL) -> None:
        if self.alive:
            self.popen.send_signal(signal_number)

    def gone(self) -> None:
        self.alive = self.ready = False
        self._release()
        if self.channel is not None:
            self.channel.close()

    def give_up(self) -> None:
        _log.error("%r has been silent for too long: killed", self)
        self.kill()

    def _release(self) -> None:
        waiting, self._waiting = self._waiting, []
        for version, future in waiting:
            if future.done():
                continue
            if self.alive and version > self.acked:
                self._waiting.append((version, future))
            else:
                future.set_result(None)


class Slot:
    """Keeps one process running until it is told to stop. `process` is None between two."""

    def __init__(
        self,
        role: Role,
        number: int,
        configure: Configurer,
        hooks: Hooks,
        argv: Argv = own_command,
        ahead: list[Spawned] | None = None,  # processes that only wait for a slot
    ) -> None:
        self.role: Role = role
        self.number = number
        self.restarts = 0
        self.last_exit: str | None = None
        self.process: SlotProcess | None = None
        self._configure = configure
        self._hooks = hooks
        self._argv = argv
        self._ahead = ahead if ahead is not None else []
        self._incarnation = 0
        self._young_deaths = 0
        self._respawn: asyncio.TimerHandle | None = None
        self._stopping = False
        self._ended = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Slot {self.role} {self.number} {self.process!r} restarts={self.restarts}>"

    def start(self) -> None:
        self._respawn = None
        self._incarnation += 1
        try:
            spawned = self._ahead.pop() if self._ahead else spawn(self.role, self._argv)
            process = SlotProcess(self.role, self.number, self._incarnation, spawned.popen)
            watch = self._attach(process, spawned)
        except OSError as error:
            self._failed_to_spawn(error)
            return
        self.process = process
        frame, fds = self._configure(self, self._incarnation)
        process.send(frame, [watch.fd, *fds])
        self._hooks.spawned(process)

    def drain(self, timeout: float) -> None:
        """Ask for a graceful end; no successor follows."""
        self._stopping = True
        if self._respawn is not None:
            self._respawn.cancel()
        if self.process is None:
            self._ended.set()
        else:
            self.process.send(Drain(timeout))

    def kill(self) -> None:
        self._stopping = True
        if self._respawn is not None:
            self._respawn.cancel()
        if self.process is None:
            self._ended.set()
        else:
            self.process.kill()

    async def ended(self) -> None:
        """After `drain` or `kill`: returns when the process is gone."""
        await self._ended.wait()

    def _attach(self, process: SlotProcess, spawned: Spawned) -> Watch:
        loop = asyncio.get_running_loop()
        with ExitStack() as undo:
            undo.callback(spawned.discard)
            pidfd = os.pidfd_open(process.pid)
            undo.callback(os.close, pidfd)
            watch = Watch(process.give_up)
            undo.pop_all()
        # Set once the process is gone: its last report may still lie in the channel.
        giving_up: asyncio.TimerHandle | None = None

        def exited() -> None:
            nonlocal giving_up
            loop.remove_reader(pidfd)
            os.close(pidfd)
            watch.close()
            if channel.closed:
                self._exited(process)
            else:
                giving_up = loop.call_later(_LAST_WORDS_S, self._exited, process)

        def closed() -> None:
            if giving_up is not None:
                giving_up.cancel()
                self._exited(process)
            elif not self._stopping:
                process.kill()  # it can be told nothing any more

        def received(message: Message, fds: list[int]) -> None:
            for fd in fds:  # none is expected from this side
                os.close(fd)
            self._received(process, message)

        channel = process.channel = Channel(spawned.sock, received, closed)
        loop.add_reader(pidfd, exited)
        return watch

    def _received(self, process: SlotProcess, message: Message) -> None:
        self._hooks.heard()
        match message:
            case Ready():
                process.ready = True
                self._hooks.ready(process)
            case Ack(version=version):
                process.acknowledge(version)
                self._hooks.acked(process)
            case Report():
                process.connections = message.connections
                self._hooks.reported(process, message)
            case _:
                _log.error("%r sent %s, which is not its to send", process, type(message).__name__)

    def _exited(self, process: SlotProcess) -> None:
        status = process.popen.wait()
        was_ready = process.ready
        process.gone()
        self.process = None
        self._hooks.died(process)
        if self._stopping:
            self._ended.set()
            return
        self.restarts += 1
        self.last_exit = describe_exit(status)
        young = not was_ready or time.monotonic() - process.born < _YOUNG_S
        self._young_deaths = self._young_deaths + 1 if young else 0
        self._respawn_after(f"{self.role} {self.number} (pid {process.pid}) {self.last_exit}")

    def _failed_to_spawn(self, error: OSError) -> None:
        self.last_exit = f"could not be started: {error}"
        self._young_deaths += 1
        self._respawn_after(f"{self.role} {self.number} {self.last_exit}")

    def _respawn_after(self, what: str) -> None:
        delay = 0.0
        if self._young_deaths:
            delay = backoff(self._young_deaths - 1, _BACKOFF_FIRST_S, _BACKOFF_LAST_S)
        when = f"next try in {delay:g} s" if delay else "replaced at once"
        _log.error("%s; %s", what, when)
        self._respawn = asyncio.get_running_loop().call_later(delay, self.start)


def describe_exit(status: int) -> str:
    if status < 0:
        known = -status in signal.valid_signals()
        return f"was killed by {signal.Signals(-status).name if known else -status}"
    return f"exited with status {status}"
