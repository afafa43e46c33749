"""A request's body as an exchange sees it, wherever it comes from.

Owns: as much of aiohttp's StreamReader as is asked of one, and the forms that are not aiohttp's.
Does not own: the relay (upload).
"""

from __future__ import annotations

from typing import Protocol

from aiohttp.streams import StreamReader

from gatewayd.core.reply import LocalReply


class BodyRefusedError(Exception):
    """It cannot be passed on to its end; `reply` says why."""

    def __init__(self, reply: LocalReply) -> None:
        super().__init__(reply.message)
        self.reply = reply


class Payload(Protocol):
    """As much of aiohttp's StreamReader as is asked of a request's body. Reading one that is
    changed on its way may raise BodyRefusedError."""

    def is_eof(self) -> bool:
        """Whether all of it has arrived."""
        ...

    def read_nowait(self) -> bytes: ...

    async def readany(self) -> bytes: ...


class BegunBody:
    """A body that somebody has begun to read: what was read comes first again."""

    def __init__(self, begun: list[bytes], rest: Payload) -> None:
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


def unchanged(payload: Payload) -> bool:
    """Whether it is what the client sends, byte for byte."""
    return isinstance(payload, StreamReader | BegunBody)
