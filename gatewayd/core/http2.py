"""HTTP/2 frames (RFC 9113) and header literals (RFC 7541), for a client that decodes no answer.

Owns: bytes. Does not own: streams, flow control, connections (net.mux).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Final

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM: Final = 1
ACK: Final = 1
END_HEADERS: Final = 4
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = (
    1, 2, 3, 4, 5,
)  # fmt: skip
CANCEL: Final = 8

FRAME_HEAD: Final = 9  # bytes
LARGEST: Final = (1 << 31) - 1  # of stream numbers and windows
WINDOW: Final = 65535  # before anybody has said otherwise
FRAME_SIZE: Final = 16384  # the largest, likewise

_HEAD: Final = struct.Struct("!HBBBI")  # length in 16 and 8 bits, type, flags, stream
_SETTING: Final = struct.Struct("!HI")


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    size = len(payload)
    return _HEAD.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


def read_frames(data: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """(kind, flags, stream, start of the payload, its end) of each frame that is there whole."""
    at, end = 0, len(data)
    while end - at >= FRAME_HEAD:
        high, low, kind, flags, stream = _HEAD.unpack_from(data, at)
        start = at + FRAME_HEAD
        at = start + (high << 8 | low)
        if at > end:
            return
        yield kind, flags, stream & LARGEST, start, at


def settings(values: Iterable[tuple[int, int]]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*pair) for pair in values))


def read_settings(payload: bytes) -> list[tuple[int, int]]:
    whole = len(payload) - len(payload) % _SETTING.size
    return list(_SETTING.iter_unpack(payload[:whole]))


def window_update(stream: int, size: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, size.to_bytes(4, "big"))


# Answers are not decoded, so their headers need no table; nothing is pushed; and whatever is said
# may be said at once.
PREFACE: Final = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    + settings(((HEADER_TABLE_SIZE, 0), (ENABLE_PUSH, 0), (INITIAL_WINDOW_SIZE, LARGEST)))
    + window_update(0, LARGEST - WINDOW)
)


def post(path: bytes, authority: bytes, fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The header block of a POST over plain HTTP; `field`s may follow. Names are lower-case."""
    start = b"\x83\x86" + field(b":path", path) + field(b":authority", authority)
    return start + b"".join(field(name, value) for name, value in fields)


def field(name: bytes, value: bytes) -> bytes:
    """A literal that no table keeps (RFC 7541, 6.2.3): it may be a key."""
    return b"\x10" + _string(name) + _string(value)


def _string(value: bytes) -> bytes:
    """Its length in seven bits and what it takes of further ones (RFC 7541, 5.1)."""
    size = len(value)
    if size < 127:
        return bytes((size,)) + value
    head = [127]
    size -= 127
    while size > 127:
        head.append(size & 127 | 128)
        size >>= 7
    return bytes((*head, size)) + value
