"""Names that a change in progress will take or give back; who else wants one of them waits.

Owns: the waiting. Does not own: what is changed (control.registry).

A certificate or a tunnel takes seconds: meanwhile its names belong to the change that waits for it,
and all others go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager


class Reservations:
    def __init__(self) -> None:
        self._held: dict[Hashable, asyncio.Event] = {}

    def __repr__(self) -> str:
        return f"<Reservations {sorted(map(str, self._held))}>"

    @asynccontextmanager
    async def of(self, *names: Hashable) -> AsyncIterator[None]:
        """All at once, so that no two wait for each other."""
        while (held := next((self._held[n] for n in names if n in self._held), None)) is not None:
            await held.wait()
        over = asyncio.Event()
        self._held.update(dict.fromkeys(names, over))
        try:
            yield
        finally:
            for name in names:
                self._held.pop(name, None)
            over.set()
