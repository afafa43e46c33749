"""Streams that last are read and written past the loop's transports.

Owns: an epoll of its own for them, edge-triggered, the reads and the straight writes. Does not
own: everything that is not just the next whole chunks of a stream. The end, an error and a slow
client are the transport's, which takes over as if nothing had been.

An event of a stream costs two system calls, 7 µs of kernel; a transport adds 2 µs of its own to
each. For an answer of a second that is nothing; of streams there are thousands at once, for
minutes (docs/adr/0021).
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from gatewayd.core.chunks import SIZE_LINES, walk_chunks
from gatewayd.net.flow import Flow

_log = logging.getLogger(__name__)

_READ_SIZE: Final = 64 * 1024
_EVENTS: Final = 256  # a turn; the loop has other work too

_MORE: Final = select.EPOLLIN  # and nothing else: no end is behind it
_READABLE: Final = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET

Write = Callable[[bytes], None]
Seal = Callable[[bytes], bytes]
# Where pieces go: a socket whose transport has nothing to send, and to which nobody else writes;
# who takes what it does not; and what is made of them before, if anything.
Way = tuple[int, Write, Seal | None]


class Lane:
    """One per process; it costs nothing until somebody joins."""

    __slots__ = ("_epoll", "_flows", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll: select.epoll | None = None
        self._flows: dict[int, LaneFlow] = {}

    def __repr__(self) -> str:
        return f"<Lane [{len(self)}]>"

    def __len__(self) -> int:
        return len(self._flows)

    def join(self, flow: LaneFlow) -> int:
        """Read it here, by the descriptor that is returned, until `leave`; who joins pauses its
        transport. What has come already is not missed. -1 when the kernel cannot: descriptors or
        its memory for such things are used up."""
        fd: int = flow.transport.get_extra_info("socket").fileno()
        try:
            if self._epoll is None:
                self._epoll = select.epoll()
                self._loop.add_reader(self._epoll.fileno(), self._ready)
            self._epoll.register(fd, _READABLE)
        except OSError:
            return -1
        self._flows[fd] = flow
        return fd

    def leave(self, fd: int, flow: LaneFlow) -> None:
        """Before its transport closes the descriptor, or after."""
        if self._epoll is not None and self._flows.get(fd) is flow:
            del self._flows[fd]
            with suppress(OSError):  # closed, so it has left by itself
                self._epoll.unregister(fd)

    def close(self) -> None:
        if self._epoll is not None:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None
        self._flows.clear()

    def _ready(self) -> None:
        flows, read, write = self._flows, os.read, os.write
        assert self._epoll is not None
        for fd, events in self._epoll.poll(0, _EVENTS):
            flow = flows.get(fd)
            if flow is None:
                continue  # it left in this turn
            try:
                if events != _MORE:
                    flow.leave_lane()  # the transport reads what there is, and the end
                    continue
                try:
                    data = read(fd, _READ_SIZE)
                except BlockingIOError:
                    continue  # it came while the last was being read, and was read with it
                except OSError:
                    flow.leave_lane()
                    continue
                size = len(data)
                if not (data.startswith(SIZE_LINES[size]) and data.endswith(b"\r\n")) and (
                    not 0 < size < _READ_SIZE or walk_chunks(data, 0)
                ):
                    # The kernel tells but once that there is something to read. Where a read may
                    # not have taken all of it, or not just whole chunks, the transport goes on.
                    flow.leave_lane()
                    if data:
                        flow.data_received(data)
                    continue
                flow.received += size
                if (seal := flow.lane_seal) is not None:
                    data = seal(data)
                    size = len(data)
                try:
                    sent = write(flow.lane_to, data)
                except OSError:
                    sent = 0  # the client's transport meets the same, and tells
                if sent < size:
                    flow.leave_lane()
                    flow.pass_on(data[sent:])
            except Exception:
                # As a transport does; and the others' events are told but once.
                _log.exception("%r met what it did not expect, and is cut", flow)
                flow.transport.abort()


class LaneFlow(Flow):
    """A connection that can be read by the lane. Whoever pauses it takes it out.

    `received` counts body bytes as they came. `lane_to` is the descriptor that the pieces are
    written to, whose transport closes it after it has told so, as those of asyncio and uvloop do;
    `pass_on` gets what it does not take.
    """

    __slots__ = ("_lane", "_lane_fd", "lane_seal", "lane_to", "pass_on", "received")

    def __init__(self) -> None:
        super().__init__()
        self.received = 0
        self.lane_to = -1
        self.lane_seal: Seal | None = None
        self.pass_on: Write = nothing_passes
        self._lane: Lane | None = None
        self._lane_fd = -1

    @property
    def in_lane(self) -> bool:
        return self._lane_fd >= 0

    def join_lane(self, lane: Lane, way: Way) -> None:
        """Not at the moment, when the kernel cannot."""
        fd = lane.join(self)
        if fd >= 0:
            self._lane, self._lane_fd = lane, fd
            self.lane_to, self.pass_on, self.lane_seal = way
            self.transport.pause_reading()

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

    def data_received(self, data: bytes) -> None:
        raise NotImplementedError


def nothing_passes(data: bytes) -> None:
    """Nobody is in the lane."""
