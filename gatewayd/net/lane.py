"""Streams that last are read and written past the loop's transports.

Owns: an epoll of its own for them, edge-triggered, the reads and the straight writes. Does not
own: what the bytes mean, and everything that is not just the next piece of a stream: the end, an
error and a slow client are the transport's, which takes over as if nothing had been.

An event of a stream costs two system calls, 7 µs of kernel; a transport adds 2 µs of its own to
each. For an answer of a second that is nothing; of streams there are thousands at once, for
minutes (docs/request.md has the figures).
"""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

from gatewayd.net.flow import Flow

_READ_SIZE: Final = 64 * 1024
_READS: Final = 16  # of one stream in a turn; the others want theirs
_EVENTS: Final = 256  # a turn

_MORE: Final = select.EPOLLIN  # and nothing else: no end is behind it
_READABLE: Final = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET

Write = Callable[[bytes], None]


class Passenger(Protocol):
    """A connection whose transport does not read while it is in the lane."""

    def data_received(self, data: bytes) -> None: ...

    def leave_lane(self) -> None:
        """It has ended or broken, or cannot be read here: its transport goes on."""


class Lane:
    """One per process; it costs nothing until somebody joins."""

    __slots__ = ("_epoll", "_loop", "_passengers")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll: select.epoll | None = None
        self._passengers: dict[int, Passenger] = {}

    def __repr__(self) -> str:
        return f"<Lane [{len(self)}]>"

    def __len__(self) -> int:
        return len(self._passengers)

    def join(self, passenger: Passenger, transport: asyncio.Transport) -> int:
        """Read it here, by the descriptor that is returned, until `leave`; who joins pauses its
        transport. What has come already is not missed. -1 when the kernel cannot: descriptors or
        its memory for such things are used up."""
        fd: int = transport.get_extra_info("socket").fileno()
        try:
            if self._epoll is None:
                self._epoll = select.epoll()
                self._loop.add_reader(self._epoll.fileno(), self._ready)
            self._epoll.register(fd, _READABLE)
        except OSError:
            return -1
        self._passengers[fd] = passenger
        return fd

    def leave(self, fd: int, passenger: Passenger) -> None:
        """Before its transport closes the descriptor, or after."""
        if self._epoll is not None and self._passengers.get(fd) is passenger:
            del self._passengers[fd]
            with suppress(OSError):  # closed, so it has left by itself
                self._epoll.unregister(fd)

    def close(self) -> None:
        if self._epoll is not None:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None
        self._passengers.clear()

    def _ready(self) -> None:
        passengers, read = self._passengers, os.read
        assert self._epoll is not None
        for fd, events in self._epoll.poll(0, _EVENTS):
            passenger = passengers.get(fd)
            if passenger is None:
                continue  # it left in this turn
            if events != _MORE:
                passenger.leave_lane()  # the transport reads what there is, and the end
                continue
            try:
                data = read(fd, _READ_SIZE)
            except BlockingIOError:
                continue  # it came while the last was being read, and was read with it
            except OSError:
                data = b""
            if data:
                passenger.data_received(data)
                if len(data) == _READ_SIZE:
                    self._read_on(fd, passenger)
            else:
                passenger.leave_lane()

    def _read_on(self, fd: int, passenger: Passenger) -> None:
        """The kernel tells but once that there is something to read: all of it is taken."""
        for _ in range(_READS):
            if self._passengers.get(fd) is not passenger:
                return
            try:
                data = os.read(fd, _READ_SIZE)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                passenger.leave_lane()
                return
            passenger.data_received(data)
            if len(data) < _READ_SIZE:
                return
        if self._passengers.get(fd) is passenger and self._epoll is not None:
            self._epoll.modify(fd, _READABLE)  # asks anew, so it is told once more


class LaneFlow(Flow):
    """A connection that can be read by the lane. Whoever pauses it takes it out."""

    __slots__ = ("_lane", "_lane_fd")

    def __init__(self) -> None:
        super().__init__()
        self._lane: Lane | None = None
        self._lane_fd = -1

    @property
    def in_lane(self) -> bool:
        return self._lane_fd >= 0

    def join_lane(self, lane: Lane) -> bool:
        """False when the kernel cannot; then nothing has changed."""
        fd = lane.join(self, self.transport)
        if fd < 0:
            return False
        self._lane, self._lane_fd = lane, fd
        self.transport.pause_reading()
        return True

    def leave_lane(self) -> None:
        self._off_lane()
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def _off_lane(self) -> None:
        fd, self._lane_fd = self._lane_fd, -1
        assert self._lane is not None
        self._lane.leave(fd, self)

    def pause_reading(self) -> None:
        if self._lane_fd >= 0 and not self.closed:
            self._off_lane()
            self.reading_paused = True  # as its transport is
        else:
            super().pause_reading()


def straight(transport: asyncio.Transport) -> Write:
    """Writes to the socket itself; to the transport what that does not take, and all that comes
    while it has something to send. Like `transport.write` it never fails: the transport meets the
    same error and tells its protocol. For a transport that closes its descriptor after it has
    told so, as those of asyncio and uvloop do."""
    fd: int = transport.get_extra_info("socket").fileno()
    waiting, later, write = transport.get_write_buffer_size, transport.write, os.write
    behind = True  # as far as is known the transport has something to send

    def write_now(data: bytes) -> None:
        nonlocal behind
        if behind:
            if waiting():
                later(data)
                return
            behind = False
        try:
            sent = write(fd, data)
        except OSError:
            sent = 0
        if sent < len(data):
            behind = True
            later(data[sent:])

    return write_now
