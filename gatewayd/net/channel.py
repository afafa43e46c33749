"""Framed messages and descriptors between control and the processes it owns, over a socketpair.

Owns: framing, descriptor passing, back-pressure. Does not own: what the messages mean
(core.messages). Pickle is safe here because both ends are the same installed code, started by
one another, on a socket nobody else can open; see docs/adr/0003.
"""

from __future__ import annotations

import array
import asyncio
import os
import pickle
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence

from gatewayd.core.messages import Message

_HEADER = struct.Struct("!II")  # payload size in bytes, number of descriptors
_READ_SIZE = 256 * 1024
_MAX_FDS = 250  # Linux passes at most 253 in one message (SCM_MAX_FD)

OnMessage = Callable[[Message, list[int]], None]
OnClosed = Callable[[], None]


class ChannelClosedError(Exception):
    """The other process is gone."""


class Channel:
    """One end. Frames arrive through `on_message` in order; `on_closed` is called once.

    `send` never blocks and never drops: what the other side has not taken yet is queued, and
    `pending_bytes` tells how much, so that the owner can give up on a process that is stuck.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_message: OnMessage,
        on_closed: OnClosed,
        *,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = loop or asyncio.get_running_loop()
        self._on_message = on_message
        self._on_closed = on_closed
        self._inbox = bytearray()
        self._inbox_fds: deque[int] = deque()
        self._outbox: deque[tuple[memoryview, tuple[int, ...]]] = deque()
        self._closed = False
        self._writing = False
        self._loop.add_reader(sock.fileno(), self._readable)

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self.pending_bytes} bytes pending"
        return f"<Channel {state}>"

    @staticmethod
    def pair() -> tuple[socket.socket, socket.socket]:
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def pending_bytes(self) -> int:
        return sum(len(data) for data, _ in self._outbox)

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Queue one frame; `fds` are duplicated into the other process (the caller keeps its own
        and must keep them open until the frame has left, which is at once for an idle channel)."""
        if self._closed:
            raise ChannelClosedError
        if len(fds) > _MAX_FDS:
            raise ValueError(f"at most {_MAX_FDS} descriptors fit one frame, not {len(fds)}")
        payload = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        # Duplicated so that the caller may close its own while the frame still waits.
        frame_fds = tuple(os.dup(fd) for fd in fds)
        header = _HEADER.pack(len(payload), len(fds))
        self._outbox.append((memoryview(header + payload), frame_fds))
        if not self._writing:
            self._writable()

    def close(self) -> None:
        """Idempotent; `on_closed` is not called for a close of our own."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._sock.fileno())
        if self._writing:
            self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        for _, fds in self._outbox:
            for fd in fds:
                os.close(fd)
        self._outbox.clear()
        while self._inbox_fds:
            os.close(self._inbox_fds.popleft())

    def _lost(self) -> None:
        if not self._closed:
            self.close()
            self._on_closed()

    def _writable(self) -> None:
        try:
            while self._outbox:
                data, fds = self._outbox[0]
                if fds:
                    rights = array.array("i", fds)
                    control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
                    sent = self._sock.sendmsg([data], control)
                    for fd in fds:
                        os.close(fd)
                else:
                    sent = self._sock.send(data)
                if sent == len(data):
                    self._outbox.popleft()
                else:
                    self._outbox[0] = (data[sent:], ())
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self._lost()
            return
        if self._outbox and not self._writing:
            self._writing = True
            self._loop.add_writer(self._sock.fileno(), self._writable)
        elif not self._outbox and self._writing:
            self._writing = False
            self._loop.remove_writer(self._sock.fileno())

    def _readable(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._sock, _READ_SIZE, _MAX_FDS)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._lost()
            return
        self._inbox_fds.extend(fds)
        if not data:
            self._lost()
            return
        self._inbox += data
        while len(self._inbox) >= _HEADER.size and not self._closed:
            size, fd_count = _HEADER.unpack_from(self._inbox)
            end = _HEADER.size + size
            if len(self._inbox) < end:
                return
            payload = bytes(self._inbox[_HEADER.size : end])
            message: Message = pickle.loads(payload)  # noqa: S301
            del self._inbox[:end]
            frame_fds = [self._inbox_fds.popleft() for _ in range(fd_count)]
            self._on_message(message, frame_fds)
