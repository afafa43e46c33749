"""When nothing runs on a replica any more.

Owns: how long to look, and how often. Does not own: the counts (net.loads), what follows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

_POLL_S: Final = 0.025
# A request may be between two tables: taken from the router, not yet counted in the bridge.
_QUIET_POLLS: Final = 3

Key = tuple[str, str]  # (Service.key, replica id)


async def until_idle(load: Callable[[Key], int], key: Key, timeout: float) -> int:
    """Requests that still run after at most `timeout` seconds."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + timeout
    quiet = 0
    while True:
        running = load(key)
        quiet = 0 if running else quiet + 1
        if quiet >= _QUIET_POLLS:
            return 0
        if clock() >= deadline:
            return running
        await asyncio.sleep(_POLL_S)
