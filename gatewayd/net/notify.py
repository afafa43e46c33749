"""What systemd wants to be told, in the datagrams of sd_notify(3).

Owns: the words, the barrier. Does not own: when they are said (control.serve, control.succession).

Without systemd there is no socket, and nothing is said. Nobody waits for systemd and nothing fails
because of it, but for the barrier: who is about to leave must have been heard.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from array import array
from typing import Final

_log = logging.getLogger(__name__)

_BARRIER_S: Final = 5.0


class Notifier:
    """`path` is `NOTIFY_SOCKET`'s value; `@` begins an abstract one."""

    def __init__(self, path: str | None) -> None:
        self._address = f"\0{path[1:]}" if path and path.startswith("@") else path or ""

    def __repr__(self) -> str:
        return f"<Notifier {self._address or 'nobody'}>"

    def ready(self) -> None:
        self._send("READY=1")

    def reloading(self) -> None:
        """`ready` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    async def succeeded_by(self, pid: int) -> None:
        """From now on the unit is that process; returns when systemd has understood, which it could
        not any more once this one is gone: it would take its end for the unit's."""
        self._send(f"MAINPID={pid}")
        if self._address:
            await self._barrier()

    async def _barrier(self) -> None:
        """systemd closes the descriptor when everything before it was looked at."""
        read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        loop = asyncio.get_running_loop()
        closed = asyncio.Event()
        try:
            self._send("BARRIER=1", write_end)
            os.close(write_end)
            write_end = -1
            loop.add_reader(read_end, closed.set)
            async with asyncio.timeout(_BARRIER_S):
                await closed.wait()
        except TimeoutError:
            _log.warning("systemd has not answered within %g s", _BARRIER_S)
        finally:
            loop.remove_reader(read_end)
            os.close(read_end)
            if write_end >= 0:
                os.close(write_end)

    def _send(self, text: str, *fds: int) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            try:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
                sock.sendmsg([text.encode()], rights, 0, self._address)
            except OSError as error:
                _log.warning("cannot tell systemd %s: %s", text.partition("\n")[0], error.strerror)
