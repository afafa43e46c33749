"""Small datagrams between two data-plane processes: the bridge and one worker.

Owns: sending, receiving, noticing the other's end. Does not own: what a frame says
(proxy.steering, bridge.claims), who is linked with whom (control.workers).

A sequenced-packet socketpair keeps frames apart without a header and in order; a frame costs one
call on either side.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from typing import Final

FRAME_SIZE: Final = 1024  # the longest frame, in bytes
_MAX_QUEUED: Final = 100_000  # frames for a peer that does not read; more means that it hangs
_FRAMES_A_TURN: Final = 256  # so that a flood of frames does not keep the loop from the rest


class Link:
    """One end. `on_closed` is called once, when the other process is gone or hangs."""

    def __init__(
        self,
        sock: socket.socket,
        on_frame: Callable[[bytes], None],
        on_closed: Callable[[], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._on_frame = on_frame
        self._on_closed = on_closed
        self._loop = loop
        self._queue: deque[bytes] = deque()
        self.closed = False
        loop.add_reader(sock.fileno(), self._readable)

    def __repr__(self) -> str:
        return f"<Link {'closed' if self.closed else f'{len(self._queue)} queued'}>"

    @staticmethod
    def pair() -> tuple[socket.socket, socket.socket]:
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def send(self, frame: bytes) -> None:
        """Send now, or as soon as the other side has read; a frame for a closed link is lost."""
        if self.closed:
            return
        if not self._queue:
            try:
                self._sock.send(frame)
            except (BlockingIOError, InterruptedError):
                self._loop.add_writer(self._sock.fileno(), self._writable)
            except OSError:
                self._lost()
                return
            else:
                return
        self._queue.append(frame)
        if len(self._queue) > _MAX_QUEUED:
            self._lost()

    def close(self) -> None:
        """Idempotent; `on_closed` is not called for a close of our own."""
        if not self.closed:
            self.closed = True
            self._loop.remove_reader(self._sock.fileno())
            self._loop.remove_writer(self._sock.fileno())
            self._sock.close()
            self._queue.clear()

    def _lost(self) -> None:
        if not self.closed:
            self.close()
            self._on_closed()

    def _readable(self) -> None:
        for _ in range(_FRAMES_A_TURN):
            try:
                frame = self._sock.recv(FRAME_SIZE)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self._lost()
                return
            if not frame:
                self._lost()
                return
            self._on_frame(frame)
            if self.closed:
                return

    def _writable(self) -> None:
        while self._queue:
            try:
                self._sock.send(self._queue[0])
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self._lost()
                return
            self._queue.popleft()
        self._loop.remove_writer(self._sock.fileno())
