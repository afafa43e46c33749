"""A raw HTTP/1.1 client connection whose body bytes pass through unparsed.

Owns: the response head and where a message ends (RFC 9112, 6.3). Does not own: idle connections
and connecting (net.pool), whether to repeat a request, what the client is told (proxy).

A body is handed on as it was read, chunk framing included; it is parsed only to find its end.
`ClientSession` costs five times as much and was seen to give stray bytes of one reply to the next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from gatewayd.core.chunks import SIZE_LINES, upto_last_chunk
from gatewayd.core.headers import BadResponse, ResponseHead
from gatewayd.core.retry import Failure
from gatewayd.net.chunked import BrokenChunksError, Chunks
from gatewayd.net.lane import LaneFlow
from gatewayd.net.sink import NOWHERE, Sink

if TYPE_CHECKING:
    from gatewayd.net.pool import Pool

_MAX_HEAD: Final = 64 * 1024
JOIN_SIZE: Final = 64 * 1024  # below it, head and body leave in one write
_UNREAD: Final = (ConnectionResetError, BrokenPipeError)
_LENGTH_FIELD: Final = frozenset((b"content-length",))
_NOTHING: Final[frozenset[bytes]] = frozenset()

IDLE, HEAD, LENGTH, CHUNKED, UNTIL_EOF, TUNNEL, CLOSED = range(7)


class UpstreamConnection(LaneFlow):
    """One connection to a replica or a router; carries one exchange at a time.

    `request_done` is set by the sender after the request's last byte. `unread`: the peer closed
    before it had read the request to its end, which only a Unix socket tells (ADR 0008).
    """

    __slots__ = (
        "_between",
        "_buffer",
        "_chunks",
        "_heard",
        "_is_head",
        "_is_last",
        "_lead",
        "_remaining",
        "_sink",
        "_strip",
        "_wants_upgrade",
        "_write_body",
        "_write_rest",
        "head",
        "idle_since",
        "pool",
        "request_done",
        "reused",
        "state",
        "status",
        "unread",
    )

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self.pool = pool
        self.state = IDLE
        self.reused = False
        self.idle_since = 0.0
        self.request_done = False
        self.unread = False
        self.status = 0
        self.head: ResponseHead = None  # type: ignore[assignment]
        self._sink: Sink | None = None
        self._chunks: Chunks | None = None
        self._between = False  # chunks, and the first has been
        self._buffer = b""
        self._remaining = 0
        self._heard = False
        self._is_head = False
        self._is_last = False
        self._wants_upgrade = False
        self._strip: frozenset[bytes] = frozenset()
        self._write_body: Callable[[bytes], None] = NOWHERE.send
        self._write_rest: Callable[[bytes], None] = NOWHERE.send
        self._lead = b""

    def __repr__(self) -> str:
        name = ("idle", "head", "length", "chunked", "until-eof", "tunnel", "closed")[self.state]
        return f"<UpstreamConnection {self.pool.address} {name}, {self.received} bytes>"

    # --- the sender's side

    def begin(
        self,
        sink: Sink,
        head: bytes,
        body: bytes | None = b"",
        strip: frozenset[bytes] = _NOTHING,
        is_head: bool = False,
        is_last: bool = False,
        wants_upgrade: bool = False,
    ) -> None:
        """Send a request and expect one response for `sink`. `body` is None while it still
        arrives; then the sender writes it. `is_last` when the head says `Connection: close`.
        (Python calls by position what it calls often.)"""
        self._sink = sink
        self.state = HEAD
        self.request_done = body is not None
        self.received = 0
        self._heard = False
        self._is_head = is_head
        self._is_last = is_last
        self._wants_upgrade = wants_upgrade
        self._strip = strip
        if body is not None and len(body) <= JOIN_SIZE:
            self.pool.outbox.put(self.write, head + body)
        else:
            self.write(head)
            if body:
                self.write(body)

    def abort(self) -> None:
        """Drop the connection at once, telling nobody: the replica stops generating."""
        self._sink = None
        self._close()

    def tunnel(self, write: Callable[[bytes], None], resume: Callable[[], None]) -> bytes:
        """After a 101: pass every further byte to `write`, and call `resume` whenever bytes are
        taken again. Returns what came with the head."""
        self._write_body = write
        self._resume = resume
        self.state = TUNNEL
        early, self._buffer = self._buffer, b""
        return early

    # --- asyncio.Protocol

    def connection_lost(self, exc: Exception | None) -> None:
        state = self.state
        if state == IDLE:
            self.pool.forget(self)
        self._gone()
        if state == UNTIL_EOF and exc is None:
            self._end(reusable=False)
        elif state == HEAD:
            if self._heard:
                self._fail(Failure.BROKEN, "closed in the middle of its head")
            else:
                self.unread = self.pool.local and isinstance(exc, _UNREAD)
                self._fail(Failure.CLOSED, "closed before it answered")
        elif state in (LENGTH, CHUNKED, UNTIL_EOF):
            self._fail(Failure.RESET_MIDSTREAM, "closed in the middle of its answer")
        elif state == TUNNEL and self._sink is not None:
            sink, self._sink = self._sink, None
            sink.tunnel_closed(self)

    def data_received(self, data: bytes) -> None:
        state = self.state
        if state == CHUNKED:  # every event of every stream
            if self._between and data.startswith(SIZE_LINES[len(data)]) and data.endswith(b"\r\n"):
                self.received += len(data)
                self._write_body(data)
            else:
                self._chunks_turn(data)
        elif state == LENGTH:
            self._counted(data)
        elif state == HEAD:
            self._read_head(data)
        elif state in (UNTIL_EOF, TUNNEL):
            if not self.received and state == UNTIL_EOF and self._sink is not None:
                self._sink.first_byte()
            self.received += len(data)
            self._write_body(data)
        elif state == IDLE:
            # Nobody asked for these bytes: they would poison the next reply.
            self.pool.forget(self)
            self._close()

    # --- where the message ends

    def _chunks_turn(self, data: bytes) -> None:
        """The first of a chunked body, its last, and what is not one whole chunk."""
        chunks = self._chunks
        assert chunks is not None
        try:
            chunks.feed(data)
        except BrokenChunksError as error:
            self._fail(Failure.RESET_MIDSTREAM, str(error))
            return
        if not self.received and self._sink is not None:
            self._sink.first_byte()
        self._between = chunks.between
        exact = False
        if chunks.complete:
            data, exact = upto_last_chunk(data)
        self.received += len(data)
        self._write_body(data)
        if chunks.complete:
            self._end(reusable=exact and not self.head.close)

    def _counted(self, data: bytes) -> None:
        if not self.received and self._sink is not None:
            self._sink.first_byte()
        self._remaining = left = self._remaining - len(data)
        if left < 0:
            data = data[:left]
        self.received += len(data)
        self._write_body(data)
        if left <= 0:
            self._end(reusable=left == 0 and not self.head.close)

    def _read_head(self, data: bytes) -> None:
        pool = self.pool
        known = pool.known_head
        if (
            data.startswith(known)
            and not (self._heard or self._is_head or not known)
            and (self._strip is pool.known_strip)
        ):
            self._heard = True
            self.head = pool.known_read
            self.status = self.head.status
            rest = data[len(known) :]
            if len(rest) == pool.known_length:
                self._pass_whole(rest, True)
            else:
                self._start_body(rest)
            return
        self._heard = True
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        while True:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                if len(data) > _MAX_HEAD or b"\n\n" in data:
                    self._fail(Failure.BROKEN, "sent a head that is too long or ill-formed")
                else:
                    self._buffer = data
                return
            head, rest = data[: end + 4], data[end + 4 :]
            if not self._parse_head(head):
                return
            if self.status >= 200 or self.status == 101:
                break
            if not rest:  # an interim answer; the real one is still to come
                return
            data = rest
        self._start_body(rest)

    def _parse_head(self, data: bytes) -> bool:
        try:
            self.head = head = self.pool.read_head(data, self._strip, keep=not self._is_head)
        except BadResponse as error:
            self._fail(Failure.BROKEN, f"answered with {error}")
            return False
        self.status = head.status
        if head.status == 101 and not (self._wants_upgrade and self.request_done):
            self._fail(Failure.BROKEN, "switched protocols unasked, or before it was asked")
            return False
        return True

    def _pass_whole(self, body: bytes, exact: bool) -> None:
        """Most answers, but for streams: all of the body has come with the head. `exact`: and
        nothing behind it."""
        sink = self._sink
        assert sink is not None
        self.state = LENGTH
        lead, receiver = sink.response_started(self)
        if self._sink is sink:  # else it gave the exchange up
            self.received = len(body)
            receiver.send(lead + body)
            self._let_go(exact and not self.head.close)

    def _start_body(self, rest: bytes) -> None:
        head = self.head
        sink = self._sink
        if sink is None:
            return
        if self.status == 101:
            self._buffer = rest
            sink.response_started(self)
            return
        bodyless = self._is_head or self.status in (204, 304)
        if bodyless:
            head.chunked = False
            self.state = LENGTH
            if self.status == 204:
                head.drop(_LENGTH_FIELD)  # RFC 9110, 8.6
        elif head.chunked:
            self.state = CHUNKED
            self._chunks = Chunks()
            self._between = False
        elif head.length >= 0:
            self.state = LENGTH
            self._remaining = head.length
        else:
            self.state = UNTIL_EOF
            head.close = True
        length = 0 if bodyless else head.length
        if self.state == LENGTH and (not length or length <= len(rest) <= JOIN_SIZE):
            exact = len(rest) == length
            self._pass_whole(rest if exact else rest[:length], exact)
            return
        lead, receiver = sink.response_started(self)
        if self._sink is not sink:  # the sink gave the exchange up
            return
        self._write_body = write = receiver.stream()
        if rest and len(rest) <= JOIN_SIZE:
            # Two writes are two packets and two calls, each dearer than copying a few kB.
            self._lead, self._write_rest = lead, write
            self._write_body = self._write_first
            self.data_received(rest)
        else:
            write(lead)
            if rest:
                self.data_received(rest)

    def _write_first(self, data: bytes) -> None:
        self._write_body = write = self._write_rest
        lead, self._lead = self._lead, b""
        write(lead + data)

    # --- a stream that lasts

    @property
    def lasting(self) -> bool:
        """It carries a stream, has done so for a while, and could do so by the lane: nothing else
        is said to the client in the meantime."""
        return (
            self._between
            and self.request_done
            and not (self.in_lane or self.reading_paused or self.transport.is_closing())
        )

    # --- endings

    def _end(self, *, reusable: bool) -> None:
        """Of a body that came piece by piece."""
        self._chunks = None
        self._between = False
        self._write_body = self._write_rest = NOWHERE.send
        self._let_go(reusable)

    def _let_go(self, reusable: bool) -> None:
        sink, self._sink = self._sink, None
        if reusable and self.request_done and not self._is_last and self.state != CLOSED:
            self.state = IDLE
            if self._lane_fd >= 0:
                self.leave_lane()
            elif self.reading_paused:
                self.resume_reading()
            self.pool.put(self)
        else:
            self._close()
        if sink is not None:
            sink.response_ended(self)

    def _fail(self, failure: Failure, detail: str) -> None:
        sink, self._sink = self._sink, None
        self._close()
        if sink is not None:
            sink.response_failed(self, failure, detail)

    def _close(self) -> None:
        self._chunks = None
        self._between = False
        self._write_body = self._write_rest = NOWHERE.send
        if self.state != CLOSED:
            self._gone()
            self.pool.outbox.flush()  # what it was sent is to have been sent
            self.transport.abort()

    def _gone(self) -> None:
        if self.in_lane:
            self._off_lane()
        self.state = CLOSED
        self.closed = True
        self._wake()
