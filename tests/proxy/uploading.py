"""Bodies of steered requests that arrive in pieces."""

from __future__ import annotations

import random

import pytest
from conversation import Wire, get
from steered import PATH, Steered

LIMIT = 100_000


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)  # noqa: S311


def pieces(body: bytes, count: int = 5) -> list[bytes]:
    size = -(-len(body) // count)
    return [body[at : at + size] for at in range(0, len(body), size)]


class Upload:
    """A client that sends its body piece by piece, in either framing."""

    def __init__(self, wire: Wire, body: bytes, framing: str, *fields: str) -> None:
        self.wire = wire
        self.chunked = framing == "chunked"
        length = "Transfer-Encoding: chunked" if self.chunked else f"Content-Length: {len(body)}"
        self.head = get(PATH, length, *fields, method="POST")
        self.left = pieces(body)

    async def begin(self) -> None:
        await self.wire.send(self.head)

    async def go_on(self, count: int = 1) -> None:
        for _ in range(count):
            piece = self.left.pop(0)
            await self.wire.send(b"%x\r\n%b\r\n" % (len(piece), piece) if self.chunked else piece)

    async def end(self) -> None:
        await self.go_on(len(self.left))
        if self.chunked:
            await self.wire.send(b"0\r\n\r\n")


async def upload(steered: Steered, body: bytes, framing: str, *fields: str) -> Upload:
    started = Upload(await steered.client(), body, framing, *fields)
    await started.begin()
    return started


FRAMINGS = pytest.mark.parametrize("framing", ["length", "chunked"])
