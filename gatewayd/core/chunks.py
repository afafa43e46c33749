"""Chunked bodies (RFC 9112, 7.1), as bytes that pass.

Owns: telling whole chunks from the rest, what belongs to the message in the read that completes
it. Does not own: the parser for what is not that simple (net.chunked).
"""

from __future__ import annotations

import re
from typing import Final

_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,8})\r\n")
_LAST: Final = b"0\r\n\r\n"
_REMEMBERED: Final = 4096  # bytes; an event of a stream is shorter, and what is longer is rare

LAST: Final = -1
UNKNOWN: Final = -2


class _SizeLines(dict[int, tuple[bytes, ...]]):
    def __missing__(self, length: int) -> tuple[bytes, ...]:
        lines: tuple[bytes, ...] = ()
        for digits in range(1, 9):
            size = length - digits - 4
            if size > 0 and len(b"%x" % size) == digits:
                lines = tuple(dict.fromkeys((b"%x\r\n" % size, b"%X\r\n" % size)))
        if length <= _REMEMBERED:
            self[length] = lines
        return lines


# How a read of that many bytes begins if it is one whole chunk, as nearly every event of a stream
# is: `data.startswith(SIZE_LINES[len(data)]) and data.endswith(b"\r\n")`.
SIZE_LINES: Final = _SizeLines()


def walk_chunks(data: bytes, left: int) -> int:
    """How much of its last chunk a read still lacks, its line end included: 0 when it ends with a
    whole one. `left` is what the reads before it lacked. LAST when it ends the body and nothing
    lies behind; UNKNOWN when it has to be parsed: extensions, trailers, a line that is not whole,
    and what is broken."""
    position, size = left, len(data)
    if left and position <= size and data[position - 2 : position] != b"\r\n":
        return UNKNOWN
    while position < size:
        line = _SIZE.match(data, position)
        if line is None:
            return UNKNOWN
        length = int(line[1], 16)
        if not length:
            return LAST if data[position:] == _LAST else UNKNOWN
        position = line.end() + length + 2
        if position <= size and data[position - 2 : position] != b"\r\n":
            return UNKNOWN
    left = position - size
    return left if not 0 < left <= 2 else UNKNOWN


def upto_last_chunk(data: bytes) -> tuple[bytes, bool]:
    """The last read of a complete chunked body without what lies behind it, and whether it is
    known that nothing does. The parser accepts nothing but line ends there."""
    tail = data[-5:]
    line_ends = len(tail) - len(tail.rstrip(b"\r\n"))
    if line_ends == 4:
        return data, True
    if line_ends > 4 and (rest := data.rstrip(b"\r\n")):
        return rest + b"\r\n\r\n", False
    return data, False  # the last chunk's own line ends were split between reads
