"""The files of tunnels: their sockets, and the keys that ssh reads.

Owns: the folder, names that fit into a socket's address, modes. Does not own: ssh.

The folder is 0700 and of this gateway alone: whatever is in it at the start is a predecessor's
that was killed, and is removed. But one that has handed over drains, and still needs its own: each
name begins with a pid.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gatewayd.core.model import SshTunnel, UnixAddress
from gatewayd.core.ssh import Identities

_LONGEST_PATH: Final = 107  # bytes of a Unix socket's path
_NAME_SIZE: Final = 16  # hex digits: 64 bits keep replicas apart


@dataclass(frozen=True, slots=True)
class TunnelFiles:
    """Those of one replica."""

    socket: Path
    keys: Path  # a folder of its own

    def write_keys(self, tunnel: SshTunnel) -> Identities:
        """And the folder that ssh makes its socket in. Raises OSError."""
        self.keys.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.keys.mkdir(mode=0o700, exist_ok=True)
        files: list[str | None] = []
        for i, hop in enumerate(tunnel.hops):
            if hop.key is None:
                files.append(hop.identity)
                continue
            path = self.keys / str(i)
            # ssh reads no key without the last line's end.
            text = hop.key.reveal().replace("\r\n", "\n").rstrip("\n") + "\n"
            path.unlink(missing_ok=True)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(fd, "w") as file:
                file.write(text)
            files.append(str(path))
        return Identities(tuple(files))

    def remove_socket(self) -> None:
        """Whoever dials it is refused at once."""
        with contextlib.suppress(OSError):
            self.socket.unlink(missing_ok=True)

    def remove(self) -> None:
        self.remove_socket()
        shutil.rmtree(self.keys, ignore_errors=True)


class TunnelFolder:
    """Made when the first tunnel needs it."""

    def __init__(self, state_dir: str) -> None:
        self._prefix = f"{os.getpid()}-"
        self._path = Path(os.path.abspath(state_dir), "ssh")
        self._remove_where(lambda name: not _in_use(name))
        if len(os.fsencode(self._path)) + 1 + len(self._prefix) + _NAME_SIZE > _LONGEST_PATH:
            # Sockets below the state directory would have paths that nobody can dial.
            self._path = Path(tempfile.mkdtemp(prefix="gatewayd-ssh-"))

    def __repr__(self) -> str:
        return f"<TunnelFolder {self._path}>"

    def address(self, service_key: str, replica_id: str) -> UnixAddress:
        return UnixAddress(str(self._path / self._name(service_key, replica_id)))

    def files(self, service_key: str, replica_id: str) -> TunnelFiles:
        name = self._name(service_key, replica_id)
        return TunnelFiles(self._path / name, self._path / f"{name}.keys")

    def remove(self) -> None:
        self._remove_where(lambda name: name.startswith(self._prefix))
        with contextlib.suppress(OSError):  # another one's are in it
            self._path.rmdir()

    def _remove_where(self, unwanted: Callable[[str], bool]) -> None:
        with contextlib.suppress(OSError):
            for entry in [entry for entry in self._path.iterdir() if unwanted(entry.name)]:
                if entry.is_dir():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink(missing_ok=True)

    def _name(self, service_key: str, replica_id: str) -> str:
        digest = hashlib.sha256(f"{service_key}|{replica_id}".encode()).hexdigest()
        return self._prefix + digest[:_NAME_SIZE]


def _in_use(name: str) -> bool:
    pid = name.partition("-")[0]
    return pid.isdigit() and int(pid) != os.getpid() and os.path.exists(f"/proc/{pid}")
