"""A chunked answer for a client of HTTP/1.0: its bytes without the framing, and then the end of the
connection.

Owns: taking the framing away. Does not own: whether it is whole (net.chunked has followed it).

Nobody has asked the replica for chunks, but there are some that know no other way to stream.
"""

from __future__ import annotations

from collections.abc import Callable

from httptools import HttpResponseParser

from gatewayd.net.sink import NOWHERE, Receiver

_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Dechunked:
    """In front of a client; `lead` goes before the body, and at once."""

    def __init__(self, client: Receiver, lead: bytes) -> None:
        self._client = client
        self._pieces = [lead]
        self._write: Callable[[bytes], None] = NOWHERE.send
        self._parser = HttpResponseParser(self)
        self._parser.feed_data(_HEAD)

    def send(self, data: bytes) -> None:
        self.stream()(data)

    def stream(self) -> Callable[[bytes], None]:
        self._write = self._client.stream()
        return self._pass

    def _pass(self, data: bytes) -> None:
        if data:
            self._parser.feed_data(data)
        if self._pieces:
            plain = b"".join(self._pieces)
            self._pieces.clear()
            self._write(plain)

    def on_body(self, data: bytes) -> None:
        self._pieces.append(data)
