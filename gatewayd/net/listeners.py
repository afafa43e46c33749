"""Listening sockets that outlive the processes which accept on them.

Owns: binding, one SO_REUSEPORT socket per slot, stale Unix sockets, sockets handed over by
systemd. Does not own: who accepts (proxy, bridge, the admin server).

A slot's socket is opened by control and only lent: a process that dies takes no queued
connection with it, because its successor accepts on the same socket.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from gatewayd.core.model import Address, TcpAddress, UnixAddress

_BACKLOG = 1024
PASSED = "fd:"  # how a configuration names a socket of systemd's
_FIRST_PASSED_FD = 3  # sd_listen_fds(3)
_PROBE_TIMEOUT_S = 0.5


class ListenError(Exception):
    """An address cannot be listened on; the text names it and says why."""


@dataclass(frozen=True, slots=True)
class Listener:
    """A bound address: a socket per slot, or one that all slots share."""

    name: str  # as the operator wrote it
    kind: Literal["tcp", "unix"]
    sockets: tuple[socket.socket, ...]
    tls: bool = False

    @property
    def scheme(self) -> str:
        return "https" if self.tls else "http"

    def for_slot(self, slot: int, slots: int) -> tuple[socket.socket, ...]:
        """More than one when a predecessor had more slots: closing a socket would reset the
        connections that wait in its queue."""
        if len(self.sockets) > slots:
            return self.sockets[slot::slots]
        return (self.sockets[slot % len(self.sockets)],)

    @property
    def address(self) -> Address:
        """The real one: port 0 has become a number."""
        return bound_address(self.sockets[0])

    def close(self) -> None:
        """Give up control's own descriptors; what the slots hold goes on."""
        for sock in self.sockets:
            sock.close()


def bound_address(sock: socket.socket) -> Address:
    name = sock.getsockname()
    return UnixAddress(name) if isinstance(name, str) else TcpAddress(name[0], name[1])


def bind_slots(
    name: str, address: Address, slots: int, *, mode: int = 0o666, takeover: bool = False
) -> Listener:
    """Listen on `address` for `slots` processes. With `takeover` an address that answers belongs
    to processes about to leave, and is bound beside them."""
    if isinstance(address, UnixAddress):
        return Listener(name, "unix", (_bind_unix(address, mode, takeover=takeover),))
    family, sockaddr = _resolve(address)
    if not takeover and address.port:
        # SO_REUSEPORT would quietly share the port with another gateway of the same user.
        _bind_tcp(address, family, sockaddr, reuse_port=False).close()
    sockets: list[socket.socket] = []
    try:
        for _ in range(slots):
            sock = _bind_tcp(address, family, sockaddr, reuse_port=True)
            sockets.append(sock)
            sockaddr = sock.getsockname()
        for sock in sockets:
            sock.listen(_BACKLOG)
    except (OSError, ListenError) as error:
        for sock in sockets:
            sock.close()
        if isinstance(error, ListenError):
            raise
        raise ListenError(f"{address}: {_why(error)}") from error
    return Listener(name, "tcp", tuple(sockets))


def adopt_slots(name: str, sockets: Sequence[socket.socket], slots: int) -> Listener:
    """Sockets of a predecessor, and as many beside them as are missing. A Unix socket, or one of
    systemd's (`fd:NAME`), is shared by all slots."""
    if sockets[0].family == socket.AF_UNIX:
        return Listener(name, "unix", tuple(sockets))
    if name.startswith(PASSED):
        return Listener(name, "tcp", tuple(sockets))
    kept = tuple(sockets)
    if len(kept) >= slots:
        return Listener(name, "tcp", kept)
    address = bound_address(kept[0])
    more = bind_slots(name, address, slots - len(kept), takeover=True)
    return Listener(name, "tcp", kept + more.sockets)


def bind_one(address: Address, *, mode: int = 0o660, takeover: bool = False) -> socket.socket:
    """One listening socket, for a process that accepts alone."""
    if isinstance(address, UnixAddress):
        return _bind_unix(address, mode, takeover=takeover)
    sock = _bind_tcp(address, *_resolve(address), reuse_port=False)
    sock.listen(_BACKLOG)
    return sock


def systemd_sockets(environ: Mapping[str, str], pid: int) -> dict[str, list[socket.socket]]:
    """The sockets that systemd passed to process `pid`, by `FileDescriptorName=`: several have one
    name when their unit has several `ListenStream=`."""
    if environ.get("LISTEN_PID") != str(pid):
        return {}
    count = int(environ.get("LISTEN_FDS", "0"))
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    found: dict[str, list[socket.socket]] = {}
    for offset in range(count):
        fd = _FIRST_PASSED_FD + offset
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)
        name = names[offset] if offset < len(names) and names[offset] else "unknown"
        found.setdefault(name, []).append(sock)
    return found


def adopt_passed(name: str, passed: Mapping[str, Sequence[socket.socket]]) -> list[Listener]:
    """`fd:NAME` of the file, an address for each socket of that name. All slots share it: systemd
    opened it once."""
    sockets = passed.get(name)
    if not sockets:
        known = ", ".join(sorted(passed)) or "none"
        raise ListenError(
            f"{PASSED}{name}: systemd passed no socket of that name (passed: {known})"
        )
    return [
        Listener(f"{PASSED}{name}", "unix" if sock.family == socket.AF_UNIX else "tcp", (sock,))
        for sock in sockets
    ]


def remove_socket_file(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


def answers(path: str) -> bool:
    """Whether somebody accepts on a Unix socket; a full queue counts as somebody."""
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    probe.settimeout(_PROBE_TIMEOUT_S)
    try:
        probe.connect(path)
    except (ConnectionRefusedError, FileNotFoundError):
        return False
    except OSError:
        return True
    finally:
        probe.close()
    return True


def _resolve(address: TcpAddress) -> tuple[int, tuple[object, ...]]:
    try:
        found = socket.getaddrinfo(
            address.host or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise ListenError(f"{address}: {error.strerror or error}") from error
    # `localhost` is both ::1 and 127.0.0.1: one of them, the one that every client tries.
    family, _, _, _, sockaddr = min(found, key=lambda info: info[0] != socket.AF_INET)
    return family, sockaddr


def _bind_tcp(
    address: TcpAddress, family: int, sockaddr: tuple[object, ...], *, reuse_port: bool
) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(sockaddr)
    except OSError as error:
        sock.close()
        raise ListenError(f"{address}: {_why(error)}") from error
    return sock


def _bind_unix(address: UnixAddress, mode: int, *, takeover: bool) -> socket.socket:
    path = address.path
    try:
        found = os.stat(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ListenError(f"{address}: {_why(error)}") from error
    else:
        if not stat.S_ISSOCK(found.st_mode):
            raise ListenError(f"{address}: a file that is not a socket is in the way")
        if not takeover and answers(path):
            raise ListenError(f"{address}: another process is listening there")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(
        0o777 & ~mode
    )  # a chmod afterwards would come too late for the first connection
    try:
        sock.setblocking(False)
        remove_socket_file(path)
        sock.bind(path)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise ListenError(f"{address}: {_why(error)}") from error
    finally:
        os.umask(umask)
    return sock


def _why(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "address already in use by another process"
    if error.errno == errno.EACCES:
        return "permission denied (ports below 1024 need CAP_NET_BIND_SERVICE)"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine has no such address"
    return error.strerror or str(error)
