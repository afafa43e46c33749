"""One client request and what became of it.

Owns: the facts of an exchange and writing an answer of our own to its client.
Does not own: admission (handler), the hop upstream (forward), counting (observe).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Protocol

from aiohttp.http import HttpVersion11

from gatewayd.core import reply as replies
from gatewayd.core.headers import RequestHead
from gatewayd.core.reply import LocalReply
from gatewayd.proxy.payload import Payload

if TYPE_CHECKING:
    from aiohttp.http_parser import RawRequestMessage

    from gatewayd.core.ratelimit import Rule
    from gatewayd.proxy.connection import ClientConnection
    from gatewayd.proxy.known import KnownHead
    from gatewayd.proxy.served import Served

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Running(Protocol):
    """What currently works for an exchange and must know when its client leaves."""

    def client_gone(self) -> None: ...

    def client_broke(self, reply: LocalReply) -> None: ...

    def client_paused(self) -> None: ...

    def client_resumed(self) -> None: ...

    def end(self, reply: LocalReply) -> None:
        """It cannot go on: `reply` is the answer if none has begun, else the client sees a cut."""
        ...


class Exchange:
    """`closed_by` says who ended it first: `-` nobody (it ended whole), `client`, `upstream`,
    `gateway`. `length` is the request's Content-Length, 0 without a body, -1 when chunked."""

    def __init__(
        self, connection: ClientConnection, message: RawRequestMessage, payload: Payload
    ) -> None:
        self.connection = connection
        self.message = message
        self.payload = payload
        self.started_at = time.monotonic()
        self.method: str = message.method
        self.known: KnownHead | None = None  # its head has been here before; all of it is here
        self.head: RequestHead = None  # type: ignore[assignment]
        self.host = ""
        self.secure = False  # by HTTPS, with us or with a trusted proxy
        self.served: Served | None = None
        self.target: str = message.path
        self.upstream_target = self.target
        self.client = connection.peer
        self.http11 = message.version is HttpVersion11 or message.version == HttpVersion11
        self.close = message.should_close or not self.http11
        self.length = 0
        self.request_id = b""
        self.given_id = b""  # by a trusted proxy
        self.rule_path = "/"
        self.bucket: tuple[Rule, bytes] | None = None  # the limit it counts for
        self.forwarded_lines = b""
        self.token_name = ""
        self.expects_continue = False
        self.upgrade = b""
        self.running: Running | None = None
        self.status = 0
        self.replica = ""
        self.via = "-"
        self.attempts = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.first_byte_at = 0.0
        self.ended_at = 0.0
        self.demanded_ms = 0  # when it began, once it counts as demand
        self.column = -1  # where it does
        self.closed_by = "-"

    def __repr__(self) -> str:
        return f"<Exchange {self.method} {self.host} {self.status or 'open'}>"

    @property
    def service_name(self) -> str:
        return "-" if self.served is None else self.served.label

    @property
    def body_arrived(self) -> bool:
        return self.payload.is_eof()

    def send_continue(self) -> None:
        """Answer `Expect: 100-continue` once somebody is ready to take the body."""
        if self.expects_continue:
            self.expects_continue = False
            if self.connection.transport is not None:
                self.connection.stream()(_CONTINUE)

    def failed(self) -> None:
        """A task that worked for it met what it did not expect."""
        if self.connection.exchange is self:  # else it is over
            self.end(replies.INTERNAL)

    def end(self, reply: LocalReply) -> None:
        """End it before its time, by an answer or a cut that its client sees."""
        if self.running is not None:
            self.running.end(reply)
        else:
            self.answer(reply)

    def answer(self, reply: LocalReply) -> None:
        """Send an answer of our own and end the exchange. Nothing may have been sent before."""
        connection = self.connection
        self.status = reply.status
        if connection.transport is None:
            connection.exchange_ended(self)
            return
        served = self.served
        noted = {} if self.head is None else self.head.noted
        accept = noted.get(b"accept", b"")
        as_json = (served is not None and served.openai_errors) or b"json" in accept
        content_type, body = replies.body(reply, as_json=as_json)
        # What still arrives of this request is not worth reading for an answer it cannot change.
        self.close = (
            self.close
            or reply.close
            or not self.body_arrived
            or connection.closing
            or connection.draining
        )
        head = replies.head(
            reply,
            content_type,
            len(body),
            request_id=self.request_id,
            date=connection.date(),
            close=self.close,
            lines=b"" if served is None else served.lines(noted.get(b"origin"), secure=self.secure),
        )
        if self.method == "HEAD" or reply.status == 204:
            body = b""
        connection.send(head + body)
        self.bytes_out = len(body)
        connection.exchange_ended(self)
