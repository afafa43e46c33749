"""Handing open sockets from one gatewayd to the next, by inheritance, as systemd does.

Owns: one variable of the environment, the descriptors it names. Does not own: what is said over the
channel (control.succession), which socket is for what (control.sockets).

The two may be different versions: what one writes here the other must be able to read, so it is
JSON with a version of its own, and a reader ignores what it does not know.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

VARIABLE: Final = "GATEWAYD_HANDOVER"
_VERSION: Final = 1

Use = Literal["public", "admin", "metrics"]


class HandoverError(Exception):
    """What was handed over cannot be understood; the text says why."""


@dataclass(frozen=True, slots=True)
class Open:
    """A bound address: `name` is how the operator wrote it, which is how it is found again."""

    use: Use
    name: str
    sockets: tuple[socket.socket, ...]


def describe(opened: Iterable[Open], *, channel_fd: int, lock_fd: int) -> tuple[str, list[int]]:
    """The variable's value for a child, and the descriptors that it must get."""
    entries = [(each.use, each.name, [sock.fileno() for sock in each.sockets]) for each in opened]
    text = json.dumps(
        {"version": _VERSION, "channel": channel_fd, "lock": lock_fd, "sockets": entries}
    )
    return text, [channel_fd, lock_fd, *(fd for _, _, fds in entries for fd in fds)]


class Inherited:
    """What this process got. Whoever takes a socket closes it; `close` closes the rest."""

    def __init__(self, channel: socket.socket, lock_fd: int, opened: Sequence[Open]) -> None:
        self.channel = channel
        self.lock_fd = lock_fd
        self._opened = list(opened)

    def __repr__(self) -> str:
        return f"<Inherited {', '.join(f'{each.use} {each.name}' for each in self._opened)}>"

    def take(self, use: Use, name: str) -> tuple[socket.socket, ...]:
        """None of them when there was no such address."""
        for each in self._opened:
            if (each.use, each.name) == (use, name):
                self._opened.remove(each)
                return each.sockets
        return ()

    def close(self) -> None:
        """Addresses that are not listened on any more."""
        for each in self._opened:
            for sock in each.sockets:
                sock.close()
        self._opened.clear()


def inherited(environ: MutableMapping[str, str]) -> Inherited | None:
    """What a predecessor handed over, once: the variable is gone afterwards, so that no child
    believes it. Raises HandoverError."""
    text = environ.pop(VARIABLE, None)
    if text is None:
        return None
    try:
        found = json.loads(text)
        if found["version"] != _VERSION:
            raise HandoverError(f"{VARIABLE} is of version {found['version']}, not {_VERSION}")
        lock_fd = int(found["lock"])
        os.set_inheritable(lock_fd, False)
        opened = [
            Open(use, name, tuple(_adopt(fd) for fd in fds)) for use, name, fds in found["sockets"]
        ]
        return Inherited(_adopt(found["channel"]), lock_fd, opened)
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise HandoverError(f"{VARIABLE} cannot be understood: {error}") from error


def _adopt(fd: int) -> socket.socket:
    os.set_inheritable(fd, False)
    sock = socket.socket(fileno=fd)
    sock.setblocking(False)
    return sock
