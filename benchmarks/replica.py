"""The replica that every figure is measured against: fast enough not to be what is measured.

Owns: HTTP/1.1 answers of fixed sizes, event streams ticked by one timer, and the few pages that
a router asks of its targets. Does not own: correctness against hostile input (only the load
clients and the proxies under test talk to it, on Unix sockets).

    python -m benchmarks.replica --socket /tmp/r.sock [--rate 50]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
from typing import ClassVar, cast

import uvloop

from benchmarks.replica_pages import (
    BLOB_BYTES,
    CHAT,
    DONE,
    ECHO,
    PLAIN,
    STREAM_HEAD,
    event,
    reply,
)

# Streams are served in this many groups, one after the other within a period: replicas emit one
# token for a whole batch of requests at once, and there are several replicas behind a gateway.
GROUPS = 4
ENDLESS = 1 << 60

_READ = memoryview(bytearray(256 * 1024))  # one buffer for all: uvloop fills and hands it over
_BLOB = memoryview(bytes(256 * 1024))
_SMALL_LINE = b"GET /small HTTP/1.1\r\n"
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close\r\n", re.IGNORECASE)
_STREAM = re.compile(rb'"stream": *true')
_MAX_TOKENS = re.compile(rb'"max_(?:completion_)?tokens": *(\d+)')


class Ticker:
    """One timer per rate; every period each of its groups gets one event."""

    def __init__(self, loop: asyncio.AbstractEventLoop, rate: float) -> None:
        self._loop = loop
        self._step = 1.0 / rate / GROUPS
        self._groups: list[set[Connection]] = [set() for _ in range(GROUPS)]
        self._turn = 0
        self._next = loop.time() + self._step
        self._timer = loop.call_at(self._next, self._tick)

    def join(self, connection: Connection) -> set[Connection]:
        group = min(self._groups, key=len)
        group.add(connection)
        return group

    def _tick(self) -> None:
        group = self._groups[self._turn]
        self._turn = (self._turn + 1) % GROUPS
        for connection in tuple(group):
            connection.tick()
        # A late tick does not make the following ones a burst.
        self._next = max(self._next + self._step, self._loop.time())
        self._timer = self._loop.call_at(self._next, self._tick)


class Connection(asyncio.BufferedProtocol):
    tickers: ClassVar[dict[float, Ticker]] = {}
    counts: ClassVar[dict[str, int]] = {"through_router": 0, "past_router": 0, "chats": 0}
    default_rate: ClassVar[float] = 50.0

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._fd = -1
        self._data = b""
        self._sink_total = 0
        self._sink_left = 0
        self._blob_left = 0
        self._paused = False
        self._close = False
        self._group: set[Connection] | None = None
        self._number = 0
        self._events_left = 0

    # --- transport ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._fd = transport.get_extra_info("socket").fileno()

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        self._blob_left = 0

    def eof_received(self) -> bool:
        self._leave()
        return False

    def get_buffer(self, sizehint: int) -> memoryview:
        return _READ

    def buffer_updated(self, nbytes: int) -> None:
        if self._sink_left:
            self._sink(nbytes)
            return
        self._data = data = self._data + bytes(_READ[:nbytes])
        # The most frequent request by far; the rest costs as much as the system calls do.
        if data.startswith(_SMALL_LINE) and data.endswith(b"\r\n\r\n") and b"close" not in data:
            self._data = b""
            self._transport.write(PLAIN[b"/small"])
            return
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return
        method, target, version = data[: data.index(b"\r\n")].split(b" ")
        if version != b"HTTP/1.1":  # the HTTP/2 preface of a router that tries gRPC, too
            self._transport.close()
            return
        head = data[: end + 2]
        self._close = _CLOSE.search(head) is not None
        found = _CONTENT_LENGTH.search(head)
        length = int(found[1]) if found else 0
        path, _, query = target.partition(b"?")
        if path == b"/sink":
            self._data = b""
            self._sink_total = self._sink_left = length
            self._sink(len(data) - end - 4)
        elif len(data) >= end + 4 + length:
            self._data = b""
            self._answer(method, path, query, data[end + 4 :])

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._pump()

    # --- answers -----------------------------------------------------------------------------

    def _answer(self, method: bytes, path: bytes, query: bytes, body: bytes) -> None:
        plain = PLAIN.get(path)
        if plain is not None:
            self._send(plain)
        elif path == b"/echo" and method == b"POST" and body:
            self._send(ECHO)
        elif path == b"/sse":
            fields = dict(pair.partition(b"=")[::2] for pair in query.split(b"&"))
            rate = float(fields.get(b"rate", self.default_rate))
            self._stream(int(fields.get(b"events", 0)) or ENDLESS, rate)
        elif path == b"/v1/chat/completions":
            self._chat(body)
        elif path == b"/blob":
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % BLOB_BYTES)
            self._blob_left = BLOB_BYTES
            self._pump()
        elif path == b"/stats":
            self._send(reply(json.dumps(self.counts).encode()))
        else:
            self._send(reply(b"{}", b"404 Not Found"))

    def _chat(self, body: bytes) -> None:
        self.counts["chats"] += 1
        # The router keeps only the fields it knows, so this one tells whether it was asked.
        self.counts["past_router" if b"bench_marker" in body else "through_router"] += 1
        if not _STREAM.search(body):
            self._send(CHAT)
            return
        found = _MAX_TOKENS.search(body)
        self._stream(int(found[1]) if found else 1, self.default_rate)

    def _send(self, data: bytes) -> None:
        self._transport.write(data)
        if self._close:
            self._transport.close()

    def _stream(self, events: int, rate: float) -> None:
        head = STREAM_HEAD + (b"Connection: close\r\n\r\n" if self._close else b"\r\n")
        if events == 1:
            self._send(head + event(0) + DONE)
            return
        self._transport.write(head + event(0))
        self._number = 1
        self._events_left = events - 1
        ticker = self.tickers.get(rate)
        if ticker is None:
            ticker = self.tickers[rate] = Ticker(asyncio.get_running_loop(), rate)
        self._group = ticker.join(self)

    def tick(self) -> None:
        if self._transport.is_closing():
            self._leave()
            return
        data = event(self._number)
        self._number += 1
        self._events_left -= 1
        try:
            # Straight to the socket: a transport would send at the end of the turn of the loop,
            # and every event of a group would carry the time of the first.
            sent = os.write(self._fd, data)
        except OSError:
            sent = 0
        if sent != len(data):  # a reader thousands of events behind: the client will see the cut
            self._leave()
            self._transport.abort()
        elif not self._events_left:
            self._leave()
            self._send(DONE)

    def _leave(self) -> None:
        if self._group is not None:
            self._group.discard(self)
            self._group = None

    def _pump(self) -> None:
        while self._blob_left and not self._paused:
            piece = _BLOB[: min(len(_BLOB), self._blob_left)]
            self._blob_left -= len(piece)
            self._transport.write(piece)
            if not self._blob_left and self._close:
                self._transport.close()

    def _sink(self, nbytes: int) -> None:
        self._sink_left -= nbytes
        if not self._sink_left:
            self._send(reply(b'{"received":%d}' % self._sink_total))


async def serve(sockets: list[str]) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    servers = [await loop.create_unix_server(Connection, path, backlog=4096) for path in sockets]
    print(json.dumps({"ready": True}), flush=True)
    await stop.wait()
    for server in servers:
        server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--socket", action="append", required=True, help="path; may be repeated")
    parser.add_argument("--rate", type=float, default=50.0, help="events/s of a chat stream")
    args = parser.parse_args()
    Connection.default_rate = args.rate
    uvloop.run(serve(args.socket))


if __name__ == "__main__":
    main()
