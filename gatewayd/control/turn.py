"""Long answers are made in slices, between which control's loop runs.

Owns: how long a slice is. Does not own: what is made.

A thread would not do: it holds the interpreter for 5 ms each time that the loop wants to go on,
dozens of times for one answer.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

_SLICE_S: Final = 0.001


class Turn:
    """One turn of the loop, and how much of it is ours."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    async def over(self) -> None:
        """Let others run, if it was long enough."""
        if time.perf_counter() - self._began >= _SLICE_S:
            await asyncio.sleep(0)
            self._began = time.perf_counter()
