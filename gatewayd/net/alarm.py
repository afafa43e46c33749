"""A timer of the kernel that one process puts off again and again, and another one hears.

Owns: timerfd_create(2), timerfd_settime(2), whether it has rung. Does not own: how often it is put
off (proxy.sweeper), what follows when it is not (control.watch).

While it is put off in time nobody is woken, and nobody has to look. From Python 3.13 on `os` has
both calls.
"""

from __future__ import annotations

import ctypes
import functools
import os
import select
import time
from collections.abc import Callable
from typing import Final, Self

_RELATIVE: Final = 0  # flags of timerfd_settime(2)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Timer(ctypes.Structure):  # struct itimerspec
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


_libc: Final = ctypes.CDLL(None, use_errno=True)
_create: Final = _libc.timerfd_create
_create.argtypes = (ctypes.c_int, ctypes.c_int)
_set: Final = _libc.timerfd_settime


class Alarm:
    """Made by control (`create`), attached by the process that puts it off. Takes over `fd`:
    `close` closes it."""

    __slots__ = ("_calls", "fd")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._calls: dict[float, Callable[[], int]] = {}  # by the seconds that they set

    @classmethod
    def create(cls) -> Self:
        """Not set. OSError."""
        fd = _create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if fd < 0:
            raise _error("timerfd_create")
        return cls(fd)

    def ring_in(self, seconds: float) -> None:
        """So late, and not before; if it rings now, it stops. There are few different values."""
        call = self._calls.get(seconds) or self._prepared(seconds)
        if call():
            raise _error("timerfd_settime")

    def _prepared(self, seconds: float) -> Callable[[], int]:
        """An idle process pays for each page of memory that it touches when it wakes, and what is
        converted for each call touches fifty."""
        whole = int(seconds)
        timer = _Timer(value=_Timespec(whole, int((seconds - whole) * 1e9)))
        arguments = (ctypes.c_int(self.fd), ctypes.c_int(_RELATIVE), ctypes.byref(timer), None)
        call = self._calls[seconds] = functools.partial(_set, *arguments)
        return call

    @property
    def rings(self) -> bool:
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> None:
        os.close(self.fd)

    def __repr__(self) -> str:
        return f"<Alarm {'ringing' if self.rings else 'silent'}, fd {self.fd}>"


def _error(call: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}")
