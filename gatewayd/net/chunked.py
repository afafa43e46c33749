"""Where a chunked answer ends, found without parsing more of it than that takes.

Owns: following the framing over reads, taking it away for who wants the bytes without it. Does not
own: the bytes, which else pass as they came.

Between two chunks there is nothing to remember, and most reads are whole chunks. A parser is made
for what is not, and then stays.
"""

from __future__ import annotations

from httptools import HttpParserError, HttpResponseParser

from gatewayd.core.chunks import LAST, UNKNOWN, walk_chunks

# Of the head the parser needs no more than that there are chunks.
_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class BrokenChunksError(Exception):
    """The peer does not keep to the framing it announced."""


class Chunks:
    """`between`: what comes next begins a chunk. `complete`: the body has ended, and with it the
    last read, or there is no more than line ends behind it."""

    __slots__ = ("_left", "_messages", "_parser", "between", "complete")

    def __init__(self) -> None:
        self._left = 0
        self._messages = 0
        self._parser: HttpResponseParser | None = None
        self.between = True
        self.complete = False

    def __repr__(self) -> str:
        return f"<Chunks {'parsed' if self._parser else self._left}>"

    def feed(self, data: bytes) -> None:
        """Raises BrokenChunksError."""
        if self._parser is None:
            left = walk_chunks(data, self._left)
            if left != UNKNOWN:
                self.between = left == 0
                self.complete = left == LAST
                self._left = left
                return
            self.between = False
            self._parser = HttpResponseParser(self)
            self._parser.feed_data(_HEAD)
            if self._left:
                self._parser.feed_data(b"%x\r\n" % (self._left - 2))
        try:
            self._parser.feed_data(data)
        except HttpParserError as error:
            raise BrokenChunksError(f"sent broken chunks: {error}") from None
        if self._messages != 1:
            raise BrokenChunksError("sent a second message behind the first")

    # --- httptools' callbacks; no on_body, so a body costs no call per chunk

    def on_message_begin(self) -> None:
        self._messages += 1

    def on_message_complete(self) -> None:
        self.complete = True


class Unchunked:
    """A body without its framing, which `Chunks` has found to be right."""

    __slots__ = ("_found", "_parser")

    def __init__(self) -> None:
        self._found: list[bytes] = []
        self._parser = HttpResponseParser(self)
        self._parser.feed_data(_HEAD)

    def feed(self, data: bytes) -> bytes:
        self._parser.feed_data(data)
        found, self._found = self._found, []
        return b"".join(found)

    def on_body(self, data: bytes) -> None:
        self._found.append(data)
