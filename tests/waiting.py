"""Waiting for what only a look can tell: other processes, files and counters have no event."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

T = TypeVar("T")

# Whatever is waited for comes within milliseconds, unless the machine stalls.
PATIENCE_S = 30.0
_STEPS_S = (0.002, 0.02)  # the first pause, and the longest


async def until(
    look: Callable[[], Awaitable[T] | T],
    what: str | Callable[[], str] = "",
    *,
    within_s: float = PATIENCE_S,
) -> T:
    """What `look` gives once it is true; `what` says what was waited for."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    pause, longest = _STEPS_S
    while True:
        found = look()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return cast(T, found)
        if loop.time() > deadline:
            described = what() if callable(what) else what or look
            raise AssertionError(f"not within {within_s:g} s: {described}")
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, longest)


def stall(seconds: float) -> None:
    """Nothing of this process goes on meanwhile."""
    time.sleep(seconds)


async def accepts(port: int) -> bool:
    """Whether somebody listens on a port of the loopback."""
    with contextlib.suppress(OSError):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        return True
    return False


async def refuses(port: int) -> bool:
    return not await accepts(port)
