"""A chat call to a replica that speaks Text Generation Inference's own API.

Owns: the exchange's request and answer in the other's words, on the ordinary way to a replica.
Does not own: the words (core.tgi), prompts (prompts), attempts and bounds (forward).

Nothing goes to the client as it came, so nothing is sent before the first event, or all of a
whole answer, is understood: until then a refusal of the replica keeps its status.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from gatewayd.core.entrypoint import TgiFormat
from gatewayd.core.events import EventReader
from gatewayd.core.headers import ResponseHead, drop_prefixed
from gatewayd.core.reply import LocalReply
from gatewayd.core.retry import Failure
from gatewayd.core.tgi import (
    DONE,
    BadCallError,
    ChatCall,
    Translation,
    error_event,
    error_reply,
    read_chat,
)
from gatewayd.net.chunked import Unchunked
from gatewayd.net.sink import BodyPath
from gatewayd.proxy.forward import Forward
from gatewayd.proxy.hop import response_head
from gatewayd.proxy.payload import BegunBody
from gatewayd.proxy.prompts import PromptFailedError, Prompts, PromptsBusyError

if TYPE_CHECKING:
    from gatewayd.net.upstream import UpstreamConnection
    from gatewayd.proxy.exchange import Exchange
    from gatewayd.proxy.plane import Plane
    from gatewayd.proxy.served import Served

CALL_MAX: Final = 16 * 1024 * 1024  # parsing one holds up everybody else's streams
BUSY: Final = LocalReply(
    503, "overloaded", "Too many chat templates are running; try again shortly", retry_after_s=1
)
_ANSWER_MAX: Final = 64 * 1024 * 1024  # of one that is whole
_STREAM_LINES: Final = [b"Content-Type: text/event-stream\r\n", b"Cache-Control: no-cache\r\n"]


async def adapt(
    exchange: Exchange, body: bytes, form: TgiFormat, prompts: Prompts
) -> ChatCall | LocalReply:
    """Make the exchange's request, whose whole body is `body`, one to such a replica."""
    try:
        call = read_chat(body)
        variables: dict[str, object] = {
            "messages": call.messages,
            "add_generation_prompt": True,
            "bos_token": "",
            "eos_token": form.eos_token,
        }
        if call.tools is not None:
            variables["tools"] = call.tools
        prompt = await prompts.render(form.chat_template, variables)
    except BadCallError as error:
        return LocalReply(400, "invalid_body", str(error))
    except PromptFailedError as error:
        return LocalReply(400, "chat_template", f"Failed to render chat template: {error}")
    except PromptsBusyError:
        return BUSY
    generate = call.generate_body(prompt, form.eos_token)
    exchange.bytes_in = len(body) - len(generate)  # what is sent in its place is added to it
    exchange.payload = BegunBody([generate], exchange.payload)
    exchange.length = len(generate)
    # What is read here must be plain, and what is sent is.
    head = exchange.head
    head.lines = drop_prefixed(
        head.lines, (b"accept:", b"accept-encoding:", b"content-type:", b"content-encoding:")
    )
    head.lines.append(b"Content-Type: application/json\r\n")
    exchange.target = exchange.upstream_target = "/generate_stream" if call.stream else "/generate"
    return call


class TgiForward(Forward):
    """`send` and `stream` are where its replica's answer goes."""

    as_it_comes = False
    _plain: Unchunked | None = None
    _events: EventReader | None = None  # None: the answer comes as one document
    _size = 0
    _written = 0

    def __init__(
        self, plane: Plane, exchange: Exchange, served: Served, call: ChatCall, form: TgiFormat
    ) -> None:
        super().__init__(plane, exchange, served)
        self._call = call
        self._call_size = exchange.bytes_in + exchange.length
        self._pieces: list[bytes] = []
        self._to_client: Callable[[bytes], None] = _nowhere
        self._translation = Translation(
            call,
            form.eos_token,
            id_=f"chatcmpl-{exchange.request_id.decode('latin-1')}",
            created=int(time.time()),
        )

    def response_started(self, connection: UpstreamConnection) -> BodyPath:
        path = super().response_started(connection)
        if not self._responding:
            return path
        self._responding = False
        self._plain = Unchunked() if connection.head.chunked else None
        if self._call.stream and connection.status == 200:
            self._events = EventReader()
        return b"", self

    # --- Receiver: the replica's answer as it came

    def stream(self) -> Callable[[bytes], None]:
        return self.send

    def send(self, data: bytes) -> None:
        if self._plain is not None:
            data = self._plain.feed(data)
        if self._over or not data:
            return
        if self._events is None:
            self._size += len(data)
            self._pieces.append(data)
            if self._size > _ANSWER_MAX:
                self._give_up()
            return
        try:
            for event in self._events.feed(data):
                frames, refusal = self._translation.event(event)
                if refusal is None:
                    self._pass(frames)
                elif self._responding:
                    self._pass(error_event(refusal))
                    self._end()
                else:
                    self._answer(refusal)
                if self._over:
                    return
        except ValueError:
            self._give_up()

    def _pass(self, frames: bytes) -> None:
        if not self._responding:
            self._responding = True
            client = self._exchange.connection
            if not self._exchange.http11:
                client.open_ended()
            self._to_client = client.stream()
            self._to_client(self._head())
        if frames:
            self._written += len(frames)
            http11 = self._exchange.http11
            self._to_client(b"%x\r\n%b\r\n" % (len(frames), frames) if http11 else frames)

    def _head(self) -> bytes:
        exchange, connection = self._exchange, self._connection
        assert connection is not None
        theirs = connection.head
        head = connection.head = ResponseHead(theirs.status, theirs.reason, b"")
        head.lines = list(_STREAM_LINES)
        head.content_type = b"text/event-stream"
        head.chunked, head.close = exchange.http11, theirs.close
        return response_head(exchange, self._served, connection, self._plane)

    # --- endings

    def _leave(self) -> None:
        super()._leave()
        self._exchange.bytes_in = self._call_size  # whatever of it was sent on

    def response_ended(self, connection: UpstreamConnection) -> None:
        if self._over:
            return
        if self._events is None:
            self._answer_whole(connection)
        elif self._translation.finished:
            self._connection = None  # back in its pool, or closed
            self._pass(DONE)
            self._end()
        else:
            connection.pool.forget(connection)
            self._give_up()

    def _answer_whole(self, connection: UpstreamConnection) -> None:
        body = b"".join(self._pieces)
        reply = error_reply(connection.status, body)
        if connection.status == 200:
            found = self._translation.whole(body)
            if found is None:
                connection.pool.forget(connection)
                self._give_up()
                return
            reply = found
        self._connection = None
        self._answer(reply)

    def _end(self) -> None:
        """The stream is whole, as far as the client is concerned."""
        exchange = self._exchange
        if exchange.http11:
            self._to_client(b"0\r\n\r\n")
        exchange.bytes_out = self._written
        self._leave()
        exchange.connection.exchange_ended(exchange)

    def _give_up(self) -> None:
        """This is no answer of such a server."""
        connection = self._connection
        assert connection is not None
        if self._responding:
            self.response_failed(connection, Failure.BROKEN, "is no text generation")
        else:
            self._drop_attempt(connection, Failure.BROKEN)


def _nowhere(data: bytes) -> None:
    """Nothing has begun."""
