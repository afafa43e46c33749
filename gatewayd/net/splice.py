"""Bytes from one socket to another inside the kernel: it hands pages on and copies nothing.

Owns: the pipe between the two that splice(2) asks for, waiting for either side, how many there are.
Does not own: what the bytes are, and when a body can go this way (proxy.upload).

It takes half the CPU of reading and writing. The sockets stay those of their transports: they are
watched by descriptors of our own.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import select
from typing import Final, Protocol

from gatewayd.net.flow import Flow

_MAX: Final = 64  # in a process at once: each has five descriptors and the pages of its pipe
_PIPE_SIZE: Final = 256 * 1024  # 25 ms of CPU for 64 MiB; 31 with the 64 kB that a pipe begins with
_SMALL: Final = 32 * 1024
_FLAGS: Final = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE


class Spliced(Protocol):
    """Whose bytes they are."""

    def splice_moved(self, size: int) -> None:
        """So much more has been taken from the source."""
        ...

    def splice_ended(self) -> None:
        """The target has it all."""
        ...

    def splice_cut(self) -> None:
        """The source has ended before."""
        ...


class Splice:
    """`size` bytes from the socket of `source` to that of `target`, which nobody else reads from
    and writes to meanwhile. When the target breaks it only stops: the target's own transport hears
    of that too, behind what came back before."""

    __slots__ = (
        "_fds",
        "_from",
        "_gone",
        "_held",
        "_in",
        "_left",
        "_out",
        "_owner",
        "_set",
        "_target",
        "_to",
        "_watched",
    )

    def __init__(
        self, of: Splices, source: asyncio.Transport, target: Flow, size: int, owner: Spliced
    ) -> None:
        """Raises OSError where there are no descriptors, or no memory for pipes (pipe(7))."""
        self._set = of
        self._target = target
        self._owner = owner
        self._left = size  # to be taken
        self._held = 0  # in the pipe
        self._watched = -1
        with contextlib.ExitStack() as undo:
            self._out, self._in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            undo.callback(os.close, self._out)
            undo.callback(os.close, self._in)
            self._from = os.dup(source.get_extra_info("socket").fileno())
            undo.callback(os.close, self._from)
            self._to = os.dup(target.transport.get_extra_info("socket").fileno())
            undo.callback(os.close, self._to)
            self._gone = select.epoll()  # readable when the source has left, whatever lies unread
            undo.callback(self._gone.close)
            self._gone.register(self._from, select.EPOLLRDHUP)
            fcntl.fcntl(self._in, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
            self._fds = undo.pop_all()

    def __repr__(self) -> str:
        return f"<Splice [{self._left} to come, {self._held} held]>"

    def start(self) -> None:
        """Raises OSError where the kernel does not do this with such sockets; nothing has moved."""
        self._set.loop.add_reader(self._gone.fileno(), self._cut)
        try:
            size = self._take()
        except BlockingIOError:
            self._watch(self._from)
        else:
            self._taken(size)

    def close(self) -> None:
        """What the pipe holds is lost."""
        if self in self._set.running:
            self._set.running.remove(self)
            self._watch(-1)
            self._set.loop.remove_reader(self._gone.fileno())
            self._fds.close()

    def _cut(self) -> None:
        self.close()
        self._owner.splice_cut()

    def _take(self) -> int:
        return os.splice(self._from, self._in, min(self._left, _PIPE_SIZE), flags=_FLAGS)

    def _readable(self) -> None:
        try:
            size = self._take()
        except BlockingIOError:
            return
        except OSError:
            size = 0
        self._taken(size)

    def _taken(self, size: int) -> None:
        if not size:
            self._cut()
            return
        if size < _SMALL:
            # A byte that came alone holds a page of the network's, and counts as a byte in the
            # target's socket: many of them would hold a lot behind a slow reader. A copy is dense.
            os.write(self._in, os.read(self._out, size))
        self._held = size
        self._left -= size
        self._owner.splice_moved(size)
        self._give()

    def _give(self) -> None:
        try:
            while self._held:
                self._held -= os.splice(self._out, self._to, self._held, flags=_FLAGS)
        except OSError as error:
            self._target.writing_paused = True  # it is its turn
            self._watch(self._to if isinstance(error, BlockingIOError) else -1)
            return
        self._target.writing_paused = False
        if self._left:
            self._watch(self._from)
        else:
            self.close()
            self._owner.splice_ended()

    def _watch(self, fd: int) -> None:
        """Wait for that side only; -1 for none."""
        watched, loop = self._watched, self._set.loop
        if watched == fd:
            return
        if watched == self._from:
            loop.remove_reader(watched)
        elif watched == self._to:
            loop.remove_writer(watched)
        self._watched = fd
        if fd == self._from:
            loop.add_reader(fd, self._readable)
        elif fd == self._to:
            loop.add_writer(fd, self._give)


class Splices:
    """Those of one process."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.running: set[Splice] = set()

    def __repr__(self) -> str:
        return f"<Splices [{len(self.running)}]>"

    def open(
        self, source: asyncio.Transport, target: Flow, size: int, owner: Spliced
    ) -> Splice | None:
        """None where there are too many already, or not the means."""
        if len(self.running) >= _MAX:
            return None
        try:
            splice = Splice(self, source, target, size, owner)
        except OSError:
            return None
        self.running.add(splice)
        return splice
