"""A chunked answer for a client of HTTP/1.0: its bytes without the framing, and then the end of the
connection.

Owns: that the head leaves at once, and with the first bytes. Does not own: taking the framing away,
whether it is whole (net.chunked).

Nobody has asked the replica for chunks, but there are some that know no other way to stream.
"""

from __future__ import annotations

from collections.abc import Callable

from gatewayd.net.chunked import Unchunked
from gatewayd.net.sink import NOWHERE, Receiver


class Dechunked:
    """In front of a client; `lead` goes before the body, and at once."""

    def __init__(self, client: Receiver, lead: bytes) -> None:
        self._client = client
        self._lead = lead
        self._write: Callable[[bytes], None] = NOWHERE.send
        self._plain = Unchunked()

    def send(self, data: bytes) -> None:
        self.stream()(data)

    def stream(self) -> Callable[[bytes], None]:
        self._write = self._client.stream()
        return self._pass

    def _pass(self, data: bytes) -> None:
        lead, self._lead = self._lead, b""
        if plain := lead + (self._plain.feed(data) if data else b""):
            self._write(plain)
