"""Starting the processes of the data plane, also before anything else is imported.

Owns: their command, their environment and limits, the pair of sockets. Does not own: their life
(control.slot).

A worker imports for a third of a second, and reading the configuration takes as long: `ahead`
starts workers first, so that both happen at once.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import gatewayd

Role = Literal["worker", "bridge"]
Argv = Callable[[Role, int], Sequence[str]]

# uvloop reads into 256 kB buffers; malloc would map and unmap each one (data-path measurements).
_MALLOC: Final = {
    "MALLOC_TRIM_THRESHOLD_": "268435456",
    "MALLOC_MMAP_THRESHOLD_": "33554432",
}
# Meant for this process alone: a child that believed them would adopt or report on our behalf.
PASSED_BY_SYSTEMD: Final = frozenset({"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"})
_NOT_INHERITED: Final = PASSED_BY_SYSTEMD | {"NOTIFY_SOCKET"}
_WORKERS_KEY: Final = re.compile(rb"^workers:\s*(\d{1,3})\s*(?:#.*)?$", re.MULTILINE)
_AHEAD_MAX: Final = 8
_DESCRIPTORS_MAX: Final = 1 << 20
_HEAD_SIZE: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Spawned:
    popen: subprocess.Popen[bytes]
    sock: socket.socket  # our end of its channel

    def discard(self) -> None:
        """It was not needed."""
        self.sock.close()
        self.popen.send_signal(signal.SIGKILL)
        self.popen.wait()


def own_command(role: Role, channel_fd: int) -> Sequence[str]:
    """The same installed code in the same interpreter. `-P`: not whatever lies in the current
    directory."""
    return (sys.executable, "-P", "-m", "gatewayd", role, "--channel-fd", str(channel_fd))


def spawn(role: Role, argv: Argv = own_command) -> Spawned:
    """Raises OSError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        popen = subprocess.Popen(
            argv(role, theirs.fileno()),
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            env=_environment(),
            process_group=0,  # a terminal's Ctrl-C is control's to handle: it drains us
        )
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
    return Spawned(popen, ours)


def ahead(config_path: str) -> list[Spawned]:
    """As many workers as a file is likely to ask for. It is properly read later: a wrong guess
    costs the start of a process."""
    try:
        with open(config_path, "rb") as file:
            head = file.read(_HEAD_SIZE)
        match = _WORKERS_KEY.search(head)
        count = int(match[1]) if match else len(os.sched_getaffinity(0))
        return [spawn("worker") for _ in range(min(count, _AHEAD_MAX))]
    except OSError:
        return []  # whoever reads the file for good says what is wrong


def allow_descriptors() -> None:
    """As many as the system lets us have: the usual soft limit of 1024 is 500 streams. Children
    inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, _DESCRIPTORS_MAX), hard))


def _environment() -> dict[str, str]:
    environ = {k: v for k, v in os.environ.items() if k not in _NOT_INHERITED} | _MALLOC
    # The channel speaks pickle: both ends must be the same code, also when it is not installed.
    root = os.path.dirname(os.path.dirname(os.path.abspath(gatewayd.__file__)))
    if os.path.basename(root) not in ("site-packages", "dist-packages"):
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, (root, environ.get("PYTHONPATH"))))
    return environ
