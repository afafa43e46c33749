"""Processes of a benchmark: pinned, measured from /proc, and never left behind.

Owns: starting on a core, the family tree of a process, its CPU time and memory, stopping by id.
Does not own: what is started (proxies, load) or what the figures mean.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CPUCLOCK_SCHED = 2  # of a whole process, in <linux/posix-timers.h>


class BenchError(Exception):
    """The figure cannot be given: something died, refused or answered wrongly."""


class Shield:
    """Interrupts wait while a process is being started or stopped: one that came between the
    fork and the note of it would leave that process behind."""

    def __init__(self) -> None:
        self._depth = 0
        self._pending = False

    def on_signal(self, *_: object) -> None:
        if self._depth:
            self._pending = True
        else:
            raise KeyboardInterrupt

    def __enter__(self) -> None:
        self._depth += 1

    def __exit__(self, *exc: object) -> None:
        self._depth -= 1
        if self._pending and not self._depth:
            self._pending = False
            raise KeyboardInterrupt


SHIELD = Shield()
running: list[Process] = []  # started and not yet stopped, in this order


def clean_environment() -> dict[str, str]:
    """No proxy variables and no way to a model hub: a router honours both."""
    env = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    return {**env, "HF_ENDPOINT": "http://127.0.0.1:9", "PYTHONUNBUFFERED": "1"}


class Process:
    """A child on given cores. It dies with us, and `stop` ends all that it started."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        cores: Collection[int],
        log: Path,
        pipes: bool = False,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.log = log
        self.started = time.monotonic()
        on = ",".join(str(core) for core in cores)
        with SHIELD, log.open("ab") as errors:
            # The two prefixes replace themselves by the command, so it is our child. In their
            # place a function between fork and exec would lose an interrupt now and then.
            self._child = subprocess.Popen(
                ["taskset", "-c", on, "setpriv", "--pdeathsig", "TERM", *argv],
                stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipes else errors,
                stderr=errors,
                env={**clean_environment(), **(env or {})},
                cwd=log.parent,
                start_new_session=True,  # an interrupt reaches us, and we end the children in order
            )
            self.pid = self._child.pid
            running.append(self)

    @property
    def alive(self) -> bool:
        return self._child.poll() is None

    def last_words(self) -> str:
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return " | ".join(text.strip().splitlines()[-3:])[-400:]

    def require_alive(self) -> None:
        if not self.alive:
            raise BenchError(f"{self.name} exited {self._child.returncode}: {self.last_words()}")

    def say(self, line: str) -> None:
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(line.encode() + b"\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            raise BenchError(f"{self.name} is gone: {self.last_words()}") from None

    def hear(self, timeout: float) -> dict[str, Any]:
        """The next line of its standard output, a JSON object; an `error` in it is raised."""
        assert self._child.stdout is not None
        # Lines are short and one is sent per question, so nothing waits in Python's buffer.
        ready, _, _ = select.select([self._child.stdout], [], [], timeout)
        line = self._child.stdout.readline() if ready else b""
        if not line:
            what = "ended" if ready else f"said nothing within {timeout:.0f} s"
            raise BenchError(f"{self.name} {what}: {self.last_words()}")
        message = json.loads(line)
        if not isinstance(message, dict) or "error" in message:
            raise BenchError(f"{self.name}: {message}")
        return message

    def stop(self, timeout: float = 5.0) -> None:
        """SIGTERM to it, SIGKILL after `timeout`; descendants that outlive it are killed too."""
        with SHIELD:
            self._stop(timeout)
            if self in running:
                running.remove(self)

    def _stop(self, timeout: float) -> None:
        births = {pid: birth(pid) for pid in family(self.pid)} if self.alive else {}
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                pipe.close()
        self._end(timeout)
        deadline = time.monotonic() + 2.0
        while left := [pid for pid, born in births.items() if born and birth(pid) == born]:
            if time.monotonic() > deadline:
                for pid in left:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                break
            time.sleep(0.02)

    def _end(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while self.alive:
            if time.monotonic() > deadline:
                self._child.kill()
            else:
                self._child.terminate()  # again: nginx forgets one that comes as it starts
            try:
                self._child.wait(1.0)
            except subprocess.TimeoutExpired:
                continue


# --- /proc -------------------------------------------------------------------------------------


def _stat(pid: int) -> list[str]:
    """Fields of /proc/<pid>/stat from the third (state) on; empty when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text[text.rindex(")") + 2 :].split()


def birth(pid: int) -> str:
    """When the process started, in the kernel's words; "" when it is gone or only a zombie."""
    fields = _stat(pid)
    return fields[19] if fields and fields[0] != "Z" else ""


def family(root: int) -> list[int]:
    """`root` and all its descendants that live."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (fields := _stat(int(entry))) and fields[0] != "Z":
            children.setdefault(int(fields[1]), []).append(int(entry))
    found = [root]
    for pid in found:
        found.extend(children.get(pid, ()))
    return found


def command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return f"{name} {words.decode(errors='replace')}".strip()


def cpu_s(pid: int) -> float:
    """User and system time of all threads so far, in seconds.

    The process's CPU clock, as clock_getcpuclockid(3) names it: what /proc/<pid>/stat shows in
    steps of 10 ms, of which a proxy uses a dozen in a window of streams, is exact here.
    """
    try:
        return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)
    except OSError:
        raise BenchError(f"process {pid} died during the measurement") from None


def memory_kib(pid: int, kind: str = "VmRSS") -> int:
    """`VmRSS` (the kernel's figure) or `Pss` (shared pages divided by their users)."""
    name = "smaps_rollup" if kind == "Pss" else "status"
    try:
        text = Path(f"/proc/{pid}/{name}").read_text()
    except (FileNotFoundError, ProcessLookupError):
        raise BenchError(f"process {pid} died during the measurement") from None
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(kind + ":"))


@dataclass(frozen=True)
class Cost:
    """What a proxy used in a window, CPU seconds by role."""

    wall_s: float
    by_role: Mapping[str, float]

    @property
    def cpu_s(self) -> float:
        return sum(self.by_role.values())


class Meter:
    """CPU of the given processes from construction to `read`; one that died is an error."""

    def __init__(self, roles: Mapping[str, Sequence[int]]) -> None:
        self._pids = {pid: role for role, pids in roles.items() for pid in pids}
        self._births = {pid: birth(pid) for pid in self._pids}
        self._before = {pid: cpu_s(pid) for pid in self._pids}
        self._start = time.monotonic()

    def read(self) -> Cost:
        wall = time.monotonic() - self._start
        by_role: dict[str, float] = {}
        for pid, role in self._pids.items():
            if birth(pid) != self._births[pid]:
                raise BenchError(f"{role} process {pid} died during the measurement")
            by_role[role] = by_role.get(role, 0.0) + cpu_s(pid) - self._before[pid]
        return Cost(wall, by_role)
