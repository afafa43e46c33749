"""The end of a chunked body (RFC 9112, 7.1), as bytes that pass.

Owns: what belongs to the message in the read that completes it. Does not own: finding that read
(net.upstream, by httptools).
"""

from __future__ import annotations


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
