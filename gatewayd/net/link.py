"""Small datagrams between two data-plane processes: the bridge and one worker.

Owns: sending, receiving, noticing the other's end. Does not own: what a frame says
(proxy.steering, bridge.claims), who is linked with whom (control.workers).

A sequenced-packet socketpair keeps datagrams in order and tells of the other's end. Frames of one
turn of the loop travel in one datagram: each wakes the other process, which costs more than to send
and to read it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final

FRAME_SIZE: Final = 1024  # the longest frame, in bytes
DATAGRAM_SIZE: Final = 8192  # some hundred claims
_MAX_QUEUED: Final = 100_000  # frames for a peer that does not read; more means that it hangs
_DATAGRAMS_A_TURN: Final = 16  # so that a flood of frames does not keep the loop from the rest
_LENGTH: Final = 2  # bytes before each frame


def pack(frames: Iterable[bytes]) -> tuple[int, bytes]:
    """As many of the frames as one datagram takes, and the datagram."""
    parts: list[bytes] = []
    size = 0
    for frame in frames:
        size += _LENGTH + len(frame)
        if parts and size > DATAGRAM_SIZE:
            break
        parts += (len(frame).to_bytes(_LENGTH, "big"), frame)
    return len(parts) // 2, b"".join(parts)


def unpack(datagram: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(datagram):
        start = at + _LENGTH
        at = start + int.from_bytes(datagram[at:start], "big")
        yield datagram[start:at]


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
        self._blocked = False  # the peer has not read what the kernel holds
        self.closed = False
        loop.add_reader(sock.fileno(), self._readable)

    def __repr__(self) -> str:
        return f"<Link {'closed' if self.closed else f'{len(self._queue)} queued'}>"

    @staticmethod
    def pair() -> tuple[socket.socket, socket.socket]:
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def send(self, frame: bytes) -> None:
        """Send at the end of this turn, or as soon as the other side has read; a frame for a closed
        link is lost."""
        if self.closed:
            return
        queue = self._queue
        if not queue:
            self._loop.call_soon(self._leave)
        queue.append(frame)
        if len(queue) > _MAX_QUEUED:
            self._lost()

    def close(self) -> None:
        """What was said still leaves, as far as the other side takes it. Idempotent; `on_closed` is
        not called for a close of our own."""
        if not self.closed:
            with contextlib.suppress(OSError):
                self._flush()
            self._shut()

    def _shut(self) -> None:
        self.closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        self._queue.clear()

    def _lost(self) -> None:
        if not self.closed:
            self._shut()
            self._on_closed()

    def _readable(self) -> None:
        for _ in range(_DATAGRAMS_A_TURN):
            try:
                datagram = self._sock.recv(DATAGRAM_SIZE)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self._lost()
                return
            if not datagram:
                self._lost()
                return
            for frame in unpack(datagram):
                self._on_frame(frame)
                if self.closed:
                    return

    def _leave(self) -> None:
        try:
            self._flush()
        except OSError:
            self._lost()

    def _flush(self) -> None:
        queue = self._queue
        while queue:
            count, datagram = pack(queue)
            try:
                self._sock.send(datagram)
            except (BlockingIOError, InterruptedError):
                if not self._blocked:
                    self._blocked = True
                    self._loop.add_writer(self._sock.fileno(), self._leave)
                return
            for _ in range(count):
                queue.popleft()
        if self._blocked:
            self._blocked = False
            self._loop.remove_writer(self._sock.fileno())
