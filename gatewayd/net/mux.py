"""Requests that share connections (HTTP/2 without TLS), for somebody who reads no answer.

Owns: a connection, the numbers of its streams, the peer's limits. Does not own: one request
(net.mux_stream), bytes (core.http2), which connection (net.mux_pool), what is asked and what an
answer's coming means (proxy.question).

A router holds thousands of questions open. One connection for each would cost either side a
descriptor, and the router 16 KiB of buffers. What is said in one turn of the loop leaves in one
write at its end (as in net.outbox): dozens of questions then wake the router once.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, cast

from gatewayd.core import http2
from gatewayd.net.mux_stream import Stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from gatewayd.net.mux_stream import Listener

_UNTIL_TOLD: Final = 100  # streams on a connection whose peer has not said how many it takes
_LAST_NUMBER: Final = http2.LARGEST - 1000  # of a stream; then another connection is made
_MAX_WAITING: Final = 256 * 1024  # bytes said in one turn, before they leave in the middle of it
_TOP_UP: Final = 1 << 30  # received before the peer's window is opened anew


class Mux(asyncio.Protocol):
    """One connection. `retired`: it takes no further streams, and closes with its last one.
    `on_foreign` is called when the peer does not speak HTTP/2, which ends it."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, on_foreign: Callable[[], None] = lambda: None
    ) -> None:
        self.loop = loop
        self._on_foreign = on_foreign
        self.window = http2.WINDOW  # what all streams together may send
        self.frame_size = http2.FRAME_SIZE
        self.retired = False
        self.idle_since = loop.time()
        self._transport: asyncio.Transport | None = None
        self._streams: dict[int, Stream] = {}
        self._blocked: dict[int, Stream] = {}
        self._next = 1
        self._most = _UNTIL_TOLD
        self._stream_window = http2.WINDOW
        self._buffer = b""
        self._received = 0
        self._waiting: list[tuple[int, bytes]] = []  # said in this turn, and of which stream
        self._left = 0  # the last stream that the peer has heard of
        self._waiting_size = 0
        self._greeted = False

    def __repr__(self) -> str:
        return f"<Mux {len(self._streams)} of {self._most}{' retired' * self.retired}>"

    @property
    def free(self) -> bool:
        return not self.retired and len(self._streams) < self._most

    @property
    def idle(self) -> bool:
        return not self._streams

    def post(self, listener: Listener, block: bytes, body: bytes | None) -> Stream:
        """Begin a request; without a `body` it is written piece by piece."""
        number = self._next
        self._next += 2
        self.retired = self.retired or number >= _LAST_NUMBER
        stream = self._streams[number] = Stream(self, number, listener, self._stream_window)
        flags = http2.END_HEADERS | http2.END_STREAM * (body == b"")
        head = http2.frame(http2.HEADERS, flags, number, block)
        self.send(head, number)
        if body == b"":
            stream.sent = True
        elif body is not None:
            stream.write(body, last=True)
        return stream

    def retire(self) -> None:
        self.retired = True
        if not self._streams:
            self.close()

    def close(self) -> None:
        """At once; streams that are open break."""
        self.retired = True
        if self._transport is not None:
            self._transport.abort()

    # --- for its streams

    def send(self, data: bytes, number: int = 0) -> None:
        if self._transport is None:
            return
        if not self._waiting:
            self.loop.call_soon(self._leave)
        self._waiting.append((number, data))
        self._waiting_size += len(data)
        if self._waiting_size > _MAX_WAITING:
            self._leave()

    def _leave(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._waiting_size = 0
        self._left = self._next - 2
        if waiting and self._transport is not None:
            self._transport.write(b"".join([data for _, data in waiting]))

    def take_back(self, stream: Stream) -> None:
        """Tell the peer, unless it has heard nothing of it yet: it may end a connection on which
        requests are reset as they come."""
        number = stream.number
        if number <= self._left:
            self.send(http2.frame(http2.RST_STREAM, 0, number, http2.CANCEL.to_bytes(4, "big")))
            return
        self.window += self._stream_window - stream.window
        self._waiting = [said for said in self._waiting if said[0] != number]
        # Never empty while its leaving is due, else that would be asked for twice.
        self._waiting = self._waiting or [(0, b"")]
        self._blocked.pop(number, None)
        self._flush_blocked()  # others may have waited for the window that it took

    def wait(self, stream: Stream, *, blocked: bool) -> None:
        """For the peer to open a window."""
        if blocked:
            self._blocked[stream.number] = stream
        else:
            self._blocked.pop(stream.number, None)

    def forget(self, stream: Stream) -> None:
        self._streams.pop(stream.number, None)
        self._blocked.pop(stream.number, None)
        if not self._streams:
            self.idle_since = self.loop.time()
            if self.retired:
                self.close()

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports implement asyncio.Transport without inheriting from it.
        self._transport = cast(asyncio.Transport, transport)
        self.send(http2.PREFACE)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.retired = True
        for stream in list(self._streams.values()):
            stream.break_off()

    def data_received(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        if not self._greeted and not self._greets(data):
            return
        used = 0
        for kind, flags, number, start, used in http2.read_frames(data):
            if kind == http2.DATA or kind == http2.HEADERS:
                if kind == http2.DATA:
                    self._received += used - start
                if flags & http2.END_STREAM and (stream := self._streams.get(number)) is not None:
                    self._answered(stream)
            else:
                self._control(kind, flags, number, data[start:used])
        self._buffer = data[used:]
        if len(self._buffer) > http2.FRAME_SIZE + http2.FRAME_HEAD:
            self.close()  # a frame larger than we have said to take
        elif self._received > _TOP_UP:
            self.send(http2.window_update(0, self._received))
            self._received = 0

    def _greets(self, data: bytes) -> bool:
        """Whether the peer speaks HTTP/2: it says its settings before all else (RFC 9113, 3.4)."""
        self._buffer = data
        if len(data) < http2.FRAME_HEAD:
            return False
        self._greeted = data[3] == http2.SETTINGS
        if not self._greeted:
            self._on_foreign()
            self.close()
        return self._greeted

    def _answered(self, stream: Stream) -> None:
        listener = stream.listener
        if stream.sent:
            stream.leave()
        else:
            stream.cancel()  # it did not need the rest
        if listener is not None:
            listener.answered()

    def _control(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind == http2.WINDOW_UPDATE:
            self._opened(number, int.from_bytes(payload, "big") & http2.LARGEST)
        elif kind == http2.SETTINGS and not flags & http2.ACK:
            for key, value in http2.read_settings(payload):
                self._told(key, value)
            self.send(http2.frame(http2.SETTINGS, http2.ACK, 0))
        elif kind == http2.PING and not flags & http2.ACK:
            self.send(http2.frame(http2.PING, http2.ACK, 0, payload))
        elif kind == http2.RST_STREAM and (stream := self._streams.get(number)) is not None:
            stream.break_off()
        elif kind == http2.GOAWAY:
            self.retired = True
            last = int.from_bytes(payload[:4], "big") & http2.LARGEST
            for stream in [s for n, s in self._streams.items() if n > last]:
                stream.break_off()
            self.retire()

    def _opened(self, number: int, size: int) -> None:
        if number == 0:
            self.window += size
            self._flush_blocked()
        elif (stream := self._streams.get(number)) is not None:
            stream.window += size
            stream.flush()

    def _told(self, key: int, value: int) -> None:
        if key == http2.MAX_CONCURRENT_STREAMS:
            self._most = value
        elif key == http2.MAX_FRAME_SIZE:
            self.frame_size = value
        elif key == http2.INITIAL_WINDOW_SIZE:
            for stream in self._streams.values():
                stream.window += value - self._stream_window
            self._stream_window = value
            self._flush_blocked()

    def _flush_blocked(self) -> None:
        for stream in list(self._blocked.values()):
            stream.flush()
