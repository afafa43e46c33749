"""A request body that somebody has begun to read: what was read comes first again.

Owns: as much of aiohttp's StreamReader as a relay asks of a body. Does not own: the relay (upload).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiohttp.streams import StreamReader


class BegunBody:
    def __init__(self, begun: list[bytes], rest: StreamReader) -> None:
        self._begun = begun
        self._rest = rest

    def is_eof(self) -> bool:
        """Whether all of it has arrived."""
        return self._rest.is_eof()

    def read_nowait(self) -> bytes:
        begun, self._begun = self._begun, []
        return b"".join((*begun, self._rest.read_nowait()))

    async def readany(self) -> bytes:
        while self._begun:
            if data := self._begun.pop(0):
                return data
        return await self._rest.readany()
