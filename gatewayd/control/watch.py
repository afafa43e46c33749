"""Whether a process still lives, and when it is given up.

Owns: hearing its alarm, the looks behind that. Does not own: the alarm itself (net.alarm), killing.

A process puts its alarm off in every round. So control hears nothing of those that live, and need
not wake to look at them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from gatewayd.net.alarm import Alarm

# Silence is counted in looks of our own, not by the clock alone: after a stall of control, or of
# the whole machine, everybody has time to put its alarm off before anybody is given up.
_LOOKS: Final = 3
_LOOK_S: Final = 0.5
_START_S: Final = 30.0  # it reads a first snapshot, or a slow disk


class Watch:
    """Over one process, from its birth on. `give_up` is called at most once."""

    def __init__(self, give_up: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._give_up = give_up
        self._looks = 0  # at which it rang, one behind the other
        self._look_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._alarm = Alarm.create()
        self._alarm.ring_in(_START_S)
        self._listen()

    def __repr__(self) -> str:
        return f"<Watch by {self._alarm!r}>"

    @property
    def fd(self) -> int:
        """What the process attaches."""
        return self._alarm.fd

    def close(self) -> None:
        """It is gone."""
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._alarm.fd)
        self._alarm.close()

    def _listen(self) -> None:
        self._looks = 0
        self._timer = None
        self._loop.add_reader(self._alarm.fd, self._rang)

    def _rang(self) -> None:
        self._loop.remove_reader(self._alarm.fd)
        self._look_again()

    def _look_again(self) -> None:
        self._look_at = self._loop.time() + _LOOK_S
        self._timer = self._loop.call_at(self._look_at, self._look)

    def _look(self) -> None:
        if not self._alarm.rings:
            self._listen()
            return
        stalled = self._loop.time() > self._look_at + _LOOK_S  # and perhaps not only we
        self._looks = 1 if stalled else self._looks + 1
        if self._looks < _LOOKS:
            self._look_again()
        else:
            self._give_up()
