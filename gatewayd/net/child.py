"""One run of a child process, from spawn to exit.

Owns: spawning in a session of its own, death with the parent, SIGTERM then SIGKILL, draining
what the child prints. Does not own: whether it is started again (net.process).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shutil
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

log = logging.getLogger(__name__)

Output = Literal["pump", "inherit"]

LINE_SIZE: Final = 4096
KEPT_LINES: Final = 40
_KILL_TIMEOUT: Final = 5.0  # SIGKILL is only slower than this for a process stuck in the kernel
_LAST_LINES_TIMEOUT: Final = 0.5  # a grandchild may keep the pipe open after its parent's exit

# PR_SET_PDEATHSIG is set by a small Python in front of the program and survives its exec. (It
# fires when the thread that spawned ends: spawn from the main thread's loop only.) Not by
# preexec_fn: that forks the whole of this process and runs Python in the copy while other threads
# may hold locks. The parent may be dead before prctl is called, so the child looks again after it.
# SIGPIPE and SIGXFSZ are ignored by Python, and exec would hand that on.
_DIE_WITH_PARENT: Final = """\
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, int(sys.argv[1]))
if os.getppid() != int(sys.argv[2]):
    os._exit(1)
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
try:
    os.execv(sys.argv[3], sys.argv[4:])
except OSError as error:
    sys.exit(f"cannot run {sys.argv[3]}: {error.strerror}")
"""

_ESCAPES: Final = re.compile(
    rb"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])"
)
_CONTROLS: Final = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Command:
    """What to run. `env` is the whole environment; `pass_fds` keep their numbers in the child and
    stay open here. With `parent_death` the child gets that signal when this process dies. Lines
    that `chatter` matches are neither kept nor handed on."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    pass_fds: tuple[int, ...] = ()
    parent_death: signal.Signals | None = signal.SIGTERM
    stdout: Output = "pump"
    stderr: Output = "pump"
    chatter: re.Pattern[str] | None = None


@dataclass(frozen=True, slots=True)
class Exit:
    """How a run ended. `code` is negative for a signal, None when nothing could be started."""

    code: int | None
    words: tuple[str, ...]  # the last lines it printed
    ran_s: float = 0.0
    was_ready: bool = False
    reason: str = ""  # ours, when we ended it

    def __str__(self) -> str:
        if self.code is None:
            return f"could not be started: {self.reason}"
        how = f"exited with {self.code}"
        if self.code < 0:
            with contextlib.suppress(ValueError):
                how = f"was ended by {signal.Signals(-self.code).name}"
        return f"{how} ({self.reason})" if self.reason else how


class _Pump(asyncio.Protocol):
    """Drains a pipe: a full one would stop the child in the middle of a line."""

    def __init__(
        self, on_line: Callable[[str], None] | None, chatter: re.Pattern[str] | None
    ) -> None:
        self.words: deque[str] = deque(maxlen=KEPT_LINES)
        self.closed = asyncio.Event()
        self._on_line = on_line
        self._chatter = chatter
        self._part = b""

    def data_received(self, data: bytes) -> None:
        *lines, part = (self._part + data).split(b"\n")
        self._part = part[:LINE_SIZE]  # what is beyond would be cut off with the line anyway
        for line in lines:
            self._line(line)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._part:
            self._line(self._part)
        self.closed.set()

    def _line(self, raw: bytes) -> None:
        clean = _CONTROLS.sub(b"", _ESCAPES.sub(b"", raw[:LINE_SIZE])).rstrip()
        text = clean.decode("utf-8", "replace")
        if not text or (self._chatter is not None and self._chatter.search(text)):
            return
        self.words.append(text)
        if self._on_line is not None:
            self._on_line(text)


class Child:
    """One process from spawn to exit."""

    def __init__(
        self,
        name: str,
        process: asyncio.subprocess.Process,
        pump: _Pump,
        pipe: asyncio.ReadTransport,
    ) -> None:
        self.name = name
        self._process = process
        self._pump = pump
        self._pipe = pipe

    @classmethod
    async def spawn(
        cls, name: str, command: Command, on_line: Callable[[str], None] | None = None
    ) -> Child:
        """Raises OSError when the program cannot be started."""
        argv = _guarded(command)
        pump = _Pump(on_line, command.chatter)
        read_end, write_end = os.pipe()
        loop = asyncio.get_running_loop()
        pipe, _ = await loop.connect_read_pipe(lambda: pump, os.fdopen(read_end, "rb", 0))
        try:
            # Not asyncio's own PIPE: with it, newer Pythons' wait() also waits for every holder
            # of the pipe, which a grandchild can be.
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=write_end if command.stdout == "pump" else None,
                stderr=write_end if command.stderr == "pump" else None,
                env=dict(command.env),
                pass_fds=command.pass_fds,
                start_new_session=True,
            )
        except BaseException:
            pipe.close()
            raise
        finally:
            os.close(write_end)
        return cls(name, process, pump, pipe)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def code(self) -> int | None:
        """None while it runs."""
        return self._process.returncode

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(self._pump.words)

    async def wait(self) -> int:
        return await self._process.wait()

    def send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def send_group(self, number: signal.Signals) -> None:
        """To it and to whatever it has started, also when it has ended itself."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)  # it leads the session that it was started in

    async def stop(self, timeout: float) -> None:
        """SIGTERM; SIGKILL when that was not enough, or when the waiting is cancelled."""
        self.send(signal.SIGTERM)
        try:
            async with asyncio.timeout(timeout):
                await self._process.wait()
        except TimeoutError:
            log.warning("%s ignored SIGTERM for %g s, sending SIGKILL", self.name, timeout)
            self.send(signal.SIGKILL)
        except asyncio.CancelledError:
            self.send(signal.SIGKILL)
            self._pipe.close()
            raise
        await self.finish()

    async def finish(self) -> None:
        """Wait for the exit and for the last lines, both for a bounded time."""
        try:
            async with asyncio.timeout(_KILL_TIMEOUT):
                await self._process.wait()
            async with asyncio.timeout(_LAST_LINES_TIMEOUT):
                await self._pump.closed.wait()
        except TimeoutError:
            pass
        finally:
            self._pipe.close()

    def __repr__(self) -> str:
        how = "running" if self.code is None else f"exit {self.code}"
        return f"<Child {self.name} pid {self.pid} {how}>"


def _guarded(command: Command) -> tuple[str, ...]:
    if command.parent_death is None:
        return command.argv
    program = shutil.which(command.argv[0], path=command.env.get("PATH", os.defpath))
    if program is None:
        raise FileNotFoundError(2, "no such program", command.argv[0])
    guard = (str(int(command.parent_death)), str(os.getpid()), program)
    return (sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, *guard, *command.argv)
