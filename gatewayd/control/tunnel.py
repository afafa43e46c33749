"""One replica's ssh, kept forwarding until it is closed.

Owns: one attempt and its deadline, reconnecting, the words of the last failure. Does not own: the
command line and the schedule (core.ssh), files (control.tunnel_files), how many connect at a time
(control.tunnels).

Not net.process: that one starts anew at a steady pace whatever happens, while here an opening may
fail for good, many take turns, and a jump's ssh must end with the one it serves.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
from collections.abc import Callable
from typing import Final

from gatewayd.control.outside import TunnelError
from gatewayd.control.tunnel_files import TunnelFiles
from gatewayd.core.model import SshTunnel
from gatewayd.core.ssh import (
    CHATTER,
    CONNECT_TIMEOUT_S,
    FORWARDS,
    STABLE_AFTER_S,
    channel_fault,
    command,
    describe,
    may_pass,
    pause,
    words_of,
)
from gatewayd.net.child import Child, Command

_log = logging.getLogger(__name__)

OPEN_TIMEOUT_S: Final = 15.0
# Who registers a replica gives it up when it is refused once: a moment's refusal is waited out.
OPEN_PAUSES_S: Final = (1.0, 2.0)
_STOP_TIMEOUT_S: Final = 2.0
_TOLD_LINES: Final = 20  # different ones, of one connection
NO_SSH: Final = "there is no ssh on this machine: install OpenSSH's client (openssh-client)"


class Tunnel:
    def __init__(
        self,
        name: str,
        tunnel: SshTunnel,
        files: TunnelFiles,
        *,
        first: asyncio.Semaphore,
        again: asyncio.Semaphore,
        on_change: Callable[[], None],
    ) -> None:
        self.name = name
        self.up = False
        self.fault: str | None = None  # why it is not up
        self._tunnel = tunnel
        self._files = files
        self._turns = (first, again)
        self._on_change = on_change
        self._task: asyncio.Task[None] | None = None
        self._child: Child | None = None  # that forwards
        self._closed = False
        self._told: set[str] = set()

    def __repr__(self) -> str:
        how = "up" if self.up else self.fault or "connecting"
        return f"<Tunnel {self.name} {describe(self._tunnel)}: {how}>"

    async def open(self) -> None:
        """Returns when it forwards; from then on it is kept. Raises TunnelError."""
        try:
            self._child = await self._connect_patiently()
            if self._closed:
                await self._drop()
                raise TunnelError("closed while it was opened")
        except BaseException:
            self._files.remove()
            raise
        self._rise()
        self._task = asyncio.create_task(self._keep(), name=f"tunnel {self.name}")

    def adopt(self) -> None:
        """Begin, and go on until it forwards."""
        self._task = asyncio.create_task(self._keep(), name=f"tunnel {self.name}")

    async def aclose(self) -> None:
        self._on_change = lambda: None
        self._closed = True
        try:
            if self._task is not None:
                self._task.cancel()
                await asyncio.gather(self._task, return_exceptions=True)
        finally:
            # Not in the task: one that is cancelled before its first step ends nothing.
            try:
                await self._drop()
            finally:
                self._files.remove()

    # --- from one connection to the next -------------------------------------------------------

    async def _keep(self) -> None:
        attempt, (turn, again) = 0, self._turns
        loop = asyncio.get_running_loop()
        while True:
            if self._child is None:
                await asyncio.sleep(pause(attempt, random.random()))  # noqa: S311 - no secret
                attempt += 1
                await self._reconnect(turn)
                turn = again
                continue
            child, turn = self._child, again
            began = loop.time()
            await child.wait()
            await self._drop()
            if loop.time() - began >= STABLE_AFTER_S:
                attempt = 0
            self._fall(words_of(child.words) or f"ssh exited with {child.code}")

    async def _drop(self) -> None:
        """What forwards, if anything does, ends with all it has started."""
        self.up = False  # before anything is awaited
        self._files.remove_socket()
        if self._child is not None:
            child, self._child = self._child, None
            await _end(child)

    async def _reconnect(self, turn: asyncio.Semaphore) -> None:
        async with turn:
            try:
                self._child = await self._connect(OPEN_TIMEOUT_S)
            except TunnelError as error:
                self._fall(str(error))
                return
            except Exception as error:
                _log.exception("tunnel of %s: trying goes on", self.name)
                self.fault = type(error).__name__
                return
        self._rise()

    def _rise(self) -> None:
        if self.fault is not None:
            _log.warning("tunnel of %s is up again", self.name)
        self.fault, self.up = None, True
        self._on_change()

    def _fall(self, why: str) -> None:
        if why != self.fault:  # the next hundred attempts say the same
            _log.warning("tunnel of %s is down: %s", self.name, why)
        self.fault = why
        self._on_change()

    # --- one connection ------------------------------------------------------------------------

    async def _connect_patiently(self) -> Child:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + OPEN_TIMEOUT_S
        for seconds in OPEN_PAUSES_S:
            try:
                return await self._connect(deadline - loop.time())
            except TunnelError as error:
                # Later there is no time in which ssh can say why.
                late = loop.time() + seconds + CONNECT_TIMEOUT_S > deadline
                if late or self._closed or not may_pass(str(error)):
                    raise
            await asyncio.sleep(seconds)
            if self._closed:
                raise TunnelError("closed while it was opened")
        return await self._connect(deadline - loop.time())

    async def _connect(self, timeout: float) -> Child:
        """A running ssh that forwards. Raises TunnelError with its own words."""
        forwards = asyncio.Event()
        self._told.clear()
        self._files.remove_socket()
        try:
            child = await Child.spawn(
                f"ssh of {self.name}",
                self._command(),
                lambda line: forwards.set() if line == FORWARDS else self._tell(line, forwards),
            )
        except FileNotFoundError as error:
            raise TunnelError(NO_SSH if error.filename == "ssh" else _say(error)) from error
        except OSError as error:
            raise TunnelError(_say(error)) from error
        done = False
        waits = [asyncio.ensure_future(forwards.wait()), asyncio.ensure_future(child.wait())]
        try:
            await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            done = forwards.is_set() and child.code is None
            late = child.code is None
        finally:
            for wait in waits:
                wait.cancel()
            if not done:
                await _end(child)
                self._files.remove_socket()
        if not done:
            reason = f"ssh did not forward within {OPEN_TIMEOUT_S:g} s" if late else ""
            said = words_of(child.words)
            raise TunnelError(
                "; ".join(filter(None, (said, reason))) or f"ssh exited with {child.code}"
            )
        return child

    def _command(self) -> Command:
        identities = self._files.write_keys(self._tunnel)
        env = {
            name: os.environ[name]
            for name in ("PATH", "HOME", "SSH_AUTH_SOCK")
            if name in os.environ
        }
        # By this shell ssh runs what connects it to a jump.
        env |= {"SHELL": "/bin/sh", "LC_ALL": "C"}
        return Command(
            command(self._tunnel, str(self._files.socket), identities),
            env,
            chatter=CHATTER,
            parent_death=signal.SIGTERM,  # upon which it ends the ssh of its jump
        )

    def _tell(self, line: str, forwards: asyncio.Event) -> None:
        """What it says once it forwards: that the replica's port takes no connection. The rest
        is told when it ends."""
        line = channel_fault(line)
        if forwards.is_set() and line and line not in self._told and len(self._told) < _TOLD_LINES:
            self._told.add(line)
            _log.warning("tunnel of %s: %s", self.name, line)


async def _end(child: Child) -> None:
    """It, and the ssh of its jumps; without grace when this is cancelled."""
    try:
        if child.code is None:
            child.send(signal.SIGTERM)  # upon which it ends the others itself
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                await child.wait()
    except TimeoutError:
        pass
    finally:
        child.send_group(signal.SIGKILL)
    await child.finish()


def _say(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
