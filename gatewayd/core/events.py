"""Server-sent events out of a stream that is cut anywhere.

Owns: where an event ends, its data (HTML standard, 9.2.6). Does not own: what the data means.
"""

from __future__ import annotations

import re
from typing import Final

EVENT_MAX: Final = 1024 * 1024
_LINE_END: Final = re.compile(rb"\r\n|\n|\r(?!\Z)")


class EventTooLongError(ValueError):
    """An event that does not end."""


class EventReader:
    """`feed` gives the data of every event that is whole now; comments and other fields are
    left out, as are events without data."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, piece: bytes) -> list[str]:
        """Raises EventTooLongError."""
        *lines, self._rest = _LINE_END.split(self._rest + piece)
        found: list[str] = []
        for line in lines:
            if line:
                name, _, value = line.partition(b":")
                if name == b"data":
                    self._data.append(value[1:] if value[:1] == b" " else value)
                    self._size += len(value)
            elif self._data:
                found.append(b"\n".join(self._data).decode("utf-8", "replace"))
                self._data, self._size = [], 0
        if self._size + len(self._rest) > EVENT_MAX:
            raise EventTooLongError(f"more than {EVENT_MAX} bytes")
        return found
