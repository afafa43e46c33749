"""What a client connection hears, until it is an exchange: known heads, aiohttp's parser, and bytes
that wait for their turn.

Owns: how bytes become messages, bounds of a head, what is kept raw. Does not own: the order of
exchanges, answers (connection), what a head means (handler).
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from typing import Final

from aiohttp import web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler

from gatewayd.core import reply as replies
from gatewayd.core.reply import LocalReply
from gatewayd.proxy.exchange import Exchange
from gatewayd.proxy.handling import Handler
from gatewayd.proxy.known import KnownHead
from gatewayd.proxy.malformed import refusal_of
from gatewayd.proxy.parser import one_by_one
from gatewayd.proxy.whole_body import NO_BODY

_HOLD_SIZE: Final = 64 * 1024  # of pipelined bytes kept raw before reading stops
_READ_SIZE: Final = 256 * 1024  # of a body that is read on before anybody has asked
_HEAD_END: Final = b"\r\n\r\n"
# aiohttp's parser takes more spaces than one, and versions of RTSP and ICE for HTTP's.
_LINE: Final = re.compile(rb"(?:\r\n)*[^ ]+ [^ ]+ HTTP/")
_UNSURE: Final = -2  # -1 is a length too: of a chunked body


class Hearing(RequestHandler):
    """`exchange` is the one that runs. A known head whose small body is on its way waits for it
    (`_early`): most clients send the two apart, and a moment later the request is whole."""

    secure = False  # whether the client speaks HTTPS with us

    __slots__ = (
        "_body_fed",
        "_early",
        "_early_left",
        "_early_since",
        "_handler",
        "_head_since",
        "_head_size",
        "_held",
        "_held_size",
        "_parser_empty",
        "_parser_holds",
        "_start",
        "exchange",
        "heard",
        "known",
        "peer",
    )

    def __init__(
        self, server: web.Server, handler: Handler, loop: asyncio.AbstractEventLoop
    ) -> None:
        # In place of RequestHandler's: it makes a parser, which is made here when it is needed (a
        # head that is known is not parsed), and thirty fields for the tasks that do not run here.
        BaseProtocol.__init__(self, loop)
        self._manager = server
        self._task_handler = None  # the server asks for it in the end
        self._messages = deque()
        self._read_bufsize = _READ_SIZE
        limits = handler.limits
        self.max_line_size = limits.request_line_size
        self.max_field_size = limits.header_size
        self.max_headers = limits.headers
        self._handler = handler
        self.exchange: Exchange | None = None
        self.peer = ""
        self.heard = b""  # the head of the next request, where that is known
        self.known: KnownHead | None = None
        self._early: list[bytes] = []
        self._early_left = 0
        self._early_since = 0.0
        self._held: list[bytes] = []
        self._held_size = 0
        self._parser_empty = True  # surely
        self._parser_holds = False  # perhaps: bytes behind the last message
        self._body_fed = 0  # bytes behind the head that the parser was given for the last message
        self._head_since = 0.0
        self._head_size = 0
        self._start = b""  # of a head that has not come whole

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.peer} {self.exchange}>"

    # --- known heads

    def _recognised(self, data: bytes) -> Exchange | None:
        """The exchange that `data` is, if it is known. None with `_early`: when the rest comes."""
        known = self.known
        if known is None and self._parser is None:
            known = self._handler.heads.find(data, self)
        if known is None or known.world is not self._handler.world:
            return None
        body = known.read(data)
        if isinstance(body, bytes):
            self.known = known
            return known.again(self, body)  # type: ignore[arg-type]  # of no other class
        if body:
            self.known = known
            self._early.append(data)
            self._early_left = body
            self._early_since = self._loop.time()
            late = self._handler.heads.late
            late.waiting.add(self)
            if late.timer is None:
                late.look_soon(self._loop)
        else:
            self.known = None
        return None

    def read_arrived(self) -> Exchange | None:
        """What has arrived in this turn (`_early`): the exchange that it is, if its head is known.
        Else it is read as it is, or its body is still to come."""
        early = self._early
        if not early:
            return None  # the connection ended meanwhile
        data = early[0] if len(early) == 1 else b"".join(early)
        early.clear()
        if self._paused:
            self._hear(data)
            return None
        exchange = self.exchange = self._recognised(data)
        if exchange is None and not early:
            self._hear(data)
        return exchange

    def _with_early(self, data: bytes) -> bytes:
        """What waited, and `data` behind it; b"" while the body is still not whole."""
        self._early.append(data)
        self._early_left -= len(data)
        return b"" if self._early_left > 0 else self._take_early()

    def _take_early(self) -> bytes:
        self._handler.heads.late.waiting.discard(self)
        early = b"".join(self._early)
        self._early.clear()
        return early

    def body_is_late(self, since: float) -> None:
        """If it has been waited for since then, what has come of it is read as it is."""
        if self._early_since <= since:
            self._hear(self._take_early())

    # --- the parser

    def _hear(self, data: bytes) -> None:
        """Read it as any request, and begin what is whole."""
        raise NotImplementedError

    def _feed(self, data: bytes) -> None:
        parser = self._parser
        if parser is None:
            parser = self._parser = one_by_one(self)
        try:
            messages, _, _ = parser.feed_data(data)
        except HttpProcessingError as error:
            self._refuse(refusal_of(error, self._handler.limits))
            return
        limits = self._handler.limits
        if messages:
            # What the parser held was not counted, but a head that came alone fits without adding.
            if self._parser_holds or self._head_size + len(data) > limits.header_size:
                size = sum(len(n) + len(v) + 4 for n, v in messages[0][0].raw_headers)
                if size > limits.header_size:
                    self._refuse(replies.HEAD_TOO_LARGE)
                    return
            # Not seen of what came in one read behind another request: the parser has it.
            if (self._parser_empty or self._start) and not _LINE.match(self._start + data):
                self._refuse(replies.bad_request("The request line is ill-formed"))
                return
            self._messages.extend(messages)
            self._start = b""
            self._head_since = 0.0
            self._head_size = 0
            self._body_fed = _UNSURE
            if self._parser_empty:
                end = data.find(_HEAD_END) + 4
                self.heard = data[:end]
                self._body_fed = len(data) - end
                self._parser_empty = False
            self._parser_holds = True
        elif self.exchange is not None:
            if self._body_fed != _UNSURE:
                self._body_fed += len(data)
        else:
            if self._parser_empty or (self._start and not _LINE.match(self._start)):
                self._start += data
            self._parser_holds = self._parser_empty = False
            if data and not self._head_since:
                self._head_since = self._loop.time()
            self._head_size += len(data)
            if self._head_size > limits.header_size + limits.request_line_size:
                self._refuse(replies.HEAD_TOO_LARGE)

    def _parsed(self, exchange: Exchange) -> None:
        """Its body has come whole. If the parser was given that much and no more, it is empty."""
        if self._body_fed == exchange.length:
            self._parser_empty = True
            self._parser_holds = False

    # --- a body that does not pass the parser to its end

    def hold_body(self) -> int:
        """Read no more of the body that arrives. Returns how much of it the parser was given, less
        than nothing where that is not known; the rest is still in the socket."""
        self._pause_reading_for_buffer()
        return self._body_fed

    def resume_body(self) -> None:
        self._resume_reading_for_buffer()

    def body_passed(self, exchange: Exchange) -> None:
        """The rest was taken out of the socket, and the parser waits for it: the next request gets
        another one."""
        exchange.payload = NO_BODY
        self._parser = None
        self._parser_empty = True
        self._parser_holds = False
        self._resume_reading_for_buffer()

    def _hold(self, data: bytes) -> None:
        """For its turn."""
        if data:
            self._held.append(data)
            self._held_size += len(data)
        if self._held_size > _HOLD_SIZE and not self._buffer_paused:
            if self._parser is None:  # aiohttp pauses both
                self._parser = one_by_one(self)
            self._pause_reading_for_buffer()

    def _refuse(self, reply: LocalReply) -> None:
        """What came cannot be read as a request, or as its body."""
        raise NotImplementedError
