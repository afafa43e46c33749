"""The part that all load clients share: which request, where to, and a strict response parser.

Owns: reading the request from standard input, framing, refusing anything but 200.
Does not own: what a client counts (sse_client, hold_client, body_client, first_byte_client).
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn, cast

import httptools

TLS = ssl.create_default_context()
TLS.check_hostname = False
TLS.verify_mode = ssl.CERT_NONE  # what is measured is the other side


@dataclass(frozen=True)
class Request:
    target: str  # host:port, or the path of a Unix socket
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    tls: bool = False

    @staticmethod
    def read() -> Request:
        said = json.loads(sys.stdin.readline())
        return Request(**{**said, "body": said["body"].encode()})

    def encode(self, content_length: int | None = None) -> bytes:
        length = len(self.body) if content_length is None else content_length
        lines = [f"{self.method} {self.path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        if length:
            lines.append(f"Content-Length: {length}")
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + self.body

    def connect(self) -> socket.socket:
        """A blocking connection."""
        if self.target.startswith("/"):
            plain = socket.socket(socket.AF_UNIX)
            plain.connect(self.target)
        else:
            host, _, port = self.target.rpartition(":")
            plain = socket.create_connection((host, int(port)))
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain.settimeout(30.0)
        return plain

    async def open(self, protocol: asyncio.Protocol) -> None:
        loop = asyncio.get_running_loop()
        if self.target.startswith("/"):
            await loop.create_unix_connection(lambda: protocol, self.target)
        else:
            host, _, port = self.target.rpartition(":")
            tls, name = (TLS, self.headers["Host"]) if self.tls else (None, None)
            await loop.create_connection(
                lambda: protocol, host, int(port), ssl=tls, server_hostname=name
            )


def tell(**values: object) -> None:
    print(json.dumps(values), flush=True)


def fail(why: str) -> NoReturn:
    tell(error=why)
    raise SystemExit(1)


class Response(asyncio.Protocol):
    """A connection that sends the request once made. All but a whole 200 goes to `wrong`."""

    def __init__(self, request: bytes, wrong: Callable[[str], None]) -> None:
        self._request = request
        self._wrong = wrong
        self._parser = httptools.HttpResponseParser(self)
        self.complete = False
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._wrong(f"bad framing: {error!r}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._wrong(f"connection lost: {exc!r}")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status != 200:
            self._wrong(f"status {status}")

    def on_message_complete(self) -> None:
        self.complete = True
