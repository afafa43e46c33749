"""Real ssh servers on loopback ports, with keys made for the test, as the current user.

    server = SshServer(folder); await server.start() ... await server.stop()

Each listens on a port of its own, which stays the same when it is started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

from waiting import accepts, until

from gatewayd.core.model import SshHop
from gatewayd.core.secret import Secret

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def make_key(path: Path) -> Secret:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)],
        check=True,
        timeout=30,
    )
    return Secret(path.read_text())


class SshServer:
    def __init__(self, folder: Path, *more: str, port: int | None = None) -> None:
        """`more` are lines of its configuration, before the defaults."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = _free_port() if port is None else port
        self.key = make_key(folder / "client")
        make_key(folder / "host")
        shutil.copy(folder / "client.pub", folder / "authorized")
        lines = [
            *more,
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            f"HostKey {folder}/host",
            f"AuthorizedKeysFile {folder}/authorized",
            "UsePAM no",
            "StrictModes no",
            "PidFile none",
            "PasswordAuthentication no",
            "MaxStartups 100",
        ]
        (folder / "config").write_text("\n".join(lines) + "\n")
        self._process: asyncio.subprocess.Process | None = None

    @property
    def destination(self) -> str:
        return f"{getpass.getuser()}@127.0.0.1"

    @property
    def identity(self) -> str:
        return str(self.folder / "client")

    def hop(self, key: Secret | None = None) -> SshHop:
        return SshHop(self.destination, self.port, key or self.key)

    async def start(self) -> None:
        assert SSHD is not None, "openssh-server is not installed"
        if os.geteuid() == 0:
            os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(SSHD, "-D", "-e", "-f", str(self.folder / "config")),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        await until(self._accepts, (self.folder / "log").read_text)

    async def stop(self) -> None:
        """With all of its connections."""
        if self._process is None:
            return
        for pid in (*self._sessions(), self._process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await self._process.wait()
        self._process = None

    async def _accepts(self) -> bool:
        assert self._process is not None
        assert self._process.returncode is None, (self.folder / "log").read_text()
        return await accepts(self.port)

    def _sessions(self) -> list[int]:
        assert self._process is not None
        found, ask = [], [self._process.pid]
        while ask:
            pid = ask.pop()
            with contextlib.suppress(OSError):
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
                ask += map(int, children)
                found += map(int, children)
        return found


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    return port


def ssh_processes(word: str) -> list[int]:
    """Those that have `word` in their command line: a path of the test's own."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes()
                if line.startswith(b"ssh\0") and word.encode() in line:
                    found.append(int(entry.name))
    return found
