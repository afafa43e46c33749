"""The state directory's owner, and what a control that died has left running.

Owns: the lock on the state directory, the record of data-plane processes, ending those of a
predecessor. Does not own: today's processes (control.workers).

Workers whose control was killed serve on, and they must: until a new control has workers of its
own beside them. A process is known by pid and start time, so a reused pid is never hit.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import signal
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

_log = logging.getLogger(__name__)


class StateDirError(Exception):
    """The state directory cannot be used; the text says why."""


@dataclass(frozen=True, slots=True)
class Known:
    """A process beyond doubt: pids are reused, pids with a start time are not."""

    pid: int
    start_time: int  # clock ticks since boot, field 22 of /proc/<pid>/stat


def known(pid: int) -> Known | None:
    """None when there is no such process (a zombie does not count)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat[stat.rindex(")") + 2 :].split()  # the name before it may hold anything
    return None if fields[0] in "ZX" else Known(pid, int(fields[19]))


class StateDir:
    """Held by one control at a time."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._lock_fd = -1

    def __repr__(self) -> str:
        return f"<StateDir {self.path}>"

    @property
    def lock_fd(self) -> int:
        """Who inherits it holds the lock too."""
        return self._lock_fd

    def acquire(self, inherited_fd: int | None = None) -> None:
        """Raises StateDirError, naming the pid of the control that holds it. `inherited_fd` is a
        predecessor's lock, of this directory or of another one."""
        if inherited_fd is not None:
            if self._is_lock(inherited_fd):
                self._lock_fd = inherited_fd
                return
            os.close(inherited_fd)
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StateDirError(f"state_dir {self.path}: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(fd, 32).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            raise StateDirError(
                f"state_dir {self.path} is in use by another gatewayd (pid {holder}); "
                "stop it, or give this one a state_dir of its own"
            ) from error
        self._lock_fd = fd
        self.sign()

    def sign(self) -> None:
        """Whoever finds the directory in use is told our pid."""
        name = f"{os.getpid()}\n".encode()
        try:
            os.pwrite(self._lock_fd, name, 0)  # before the rest is cut: on a full disk a block
            os.ftruncate(self._lock_fd, len(name))  # that is given back may be gone
        except OSError as error:  # the lock holds all the same
            _log.error("cannot write %s: %s", self.path / "lock", error.strerror)
            with contextlib.suppress(OSError):
                os.ftruncate(self._lock_fd, 0)  # better nobody than a predecessor

    def _is_lock(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), os.stat(self.path / "lock"))
        except OSError:
            return False

    def release(self) -> None:
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def record(self, pids: Iterable[int]) -> None:
        """Remember our data-plane processes for a successor."""
        processes = [asdict(process) for pid in pids if (process := known(pid)) is not None]
        fresh = self._record.with_suffix(".new")
        try:
            fresh.write_text(json.dumps(processes))
            fresh.replace(self._record)
        except OSError as error:  # a full disk must not stop the traffic
            _log.error("cannot write %s: %s", self._record, error.strerror)

    def survivors(self) -> list[Known]:
        """What the last control left running."""
        try:
            recorded = [Known(**entry) for entry in json.loads(self._record.read_text())]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError) as error:
            _log.error("cannot read %s, its processes are not looked for: %s", self._record, error)
            return []
        return [process for process in recorded if known(process.pid) == process]

    @property
    def _record(self) -> Path:
        return self.path / "workers.json"


async def dismiss(survivors: Sequence[Known], timeout: float) -> None:
    """Let the workers of a dead control drain, and kill those that do not."""
    await asyncio.gather(*(_dismiss(process, timeout) for process in survivors))


async def _dismiss(process: Known, timeout: float) -> None:
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    try:
        if known(process.pid) != process:  # the descriptor is of whoever has the pid now
            return
        _log.warning("pid %d of an earlier control drains", process.pid)
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        loop.add_reader(pidfd, ended.set)
        try:
            async with asyncio.timeout(timeout):
                await ended.wait()
        except TimeoutError:
            _log.error("pid %d did not end within %g s and is killed", process.pid, timeout)
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
