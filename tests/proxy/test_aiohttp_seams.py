"""What proxy.connection relies on in aiohttp without its documentation promising it.

The version is pinned to one minor release; when one of these fails after an upgrade, read the
named place of aiohttp before anything else.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator

import pytest
from aiohttp import web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpVersion11
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.http_parser import HttpRequestParser, HttpRequestParserPy
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestHandler
from harness import Gateway

HEAD = b"GET /a?b#c HTTP/1.1\r\nHost: x\r\nX-A: \xff\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n"


class Protocol(BaseProtocol):
    """Notes what a parser and its readers do to the protocol."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.did: list[object] = []

    def data_received(self, data: bytes) -> None:
        self.did.append(data)

    def resume_reading(self, resume_parser: bool = True) -> None:
        self.did.append("resume")
        super().resume_reading(resume_parser)


@pytest.fixture
def protocol() -> Iterator[Protocol]:
    loop = asyncio.new_event_loop()
    yield Protocol(loop)
    loop.close()


def parser_of(protocol: Protocol, queue: int = 1, **bounds: int) -> HttpRequestParser:
    bounds = {"max_line_size": 1000, "max_field_size": 1000, "max_headers": 10, **bounds}
    parser = HttpRequestParser(
        protocol,
        protocol._loop,
        2**16,
        auto_decompress=False,
        max_msg_queue_size=queue,
        **bounds,
    )
    protocol._parser = parser
    return parser


def test_the_parser_is_the_compiled_one() -> None:
    """The one in Python is slower by far, and its strictness is another's."""
    assert HttpRequestParser is not HttpRequestParserPy


def test_a_message_has_the_parts_that_an_exchange_reads(protocol: Protocol) -> None:
    ((message, payload),), upgraded, tail = parser_of(protocol).feed_data(HEAD)
    assert (message.method, message.path) == ("GET", "/a?b#c")
    assert message.version == HttpVersion11
    assert message.raw_headers == ((b"Host", b"x"), (b"X-A", b"\xff"))
    assert message.headers.get("x-a") == "\udcff"
    assert (message.should_close, message.chunked) == (False, False)
    assert payload is EMPTY_PAYLOAD
    assert payload.is_eof()
    assert (upgraded, tail) == (False, b"")


def test_the_parser_stops_behind_a_message_until_it_is_fed_again(protocol: Protocol) -> None:
    parser = parser_of(protocol)
    for turn in range(50):
        messages, _, _ = parser.feed_data(HEAD * 3 if not turn else b"")
        parser.message_consumed()
        assert len(messages) == (1 if turn < 3 else 0)


def test_the_parser_stops_behind_a_body_too(protocol: Protocol) -> None:
    parser = parser_of(protocol)
    ((_, payload),), _, _ = parser.feed_data(POST)
    parser.message_consumed()
    assert not payload.is_eof()
    assert parser.feed_data(b"body" + HEAD[:10])[0] == ()
    assert payload.is_eof()
    assert len(parser.feed_data(HEAD[10:])[0]) == 1


@pytest.mark.parametrize("protocol_name", [b"websocket", b"anything/1"])
def test_what_lies_behind_an_upgrade_is_given_when_it_is_called_one(
    protocol: Protocol, protocol_name: bytes
) -> None:
    parser = parser_of(protocol)
    early = b"\x81\x05GET / HTTP/1.1\r\n\r\n"
    messages, _, _ = parser.feed_data(
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: %b\r\n\r\n" % protocol_name
        + early
    )
    assert len(messages) == 1
    parser.set_upgraded(True)
    assert parser.feed_data(b"") == ((), True, early)


def test_a_parser_without_leftovers_gives_none(protocol: Protocol) -> None:
    parser = parser_of(protocol)
    parser.feed_data(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: a\r\n\r\n")
    parser.set_upgraded(True)
    assert parser.feed_data(b"")[2] == b""


def test_the_errors_tell_line_field_and_count_apart(protocol: Protocol) -> None:
    with pytest.raises(LineTooLong) as line:
        parser_of(protocol, max_line_size=50).feed_data(b"GET /" + b"a" * 100)
    assert 50 in line.value.args
    with pytest.raises(LineTooLong) as field:
        parser_of(protocol, max_field_size=60).feed_data(HEAD[:-2] + b"A: " + b"b" * 100 + b"\r\n")
    assert 60 in field.value.args
    with pytest.raises(HttpProcessingError) as count:
        parser_of(protocol, max_headers=2).feed_data(HEAD[:-2] + b"C: d\r\n\r\n")
    assert "Too many headers" in count.value.message
    with pytest.raises(HttpProcessingError):
        parser_of(protocol).feed_data(b"nonsense\r\n\r\n")


async def test_reading_a_full_reader_calls_data_received_with_nothing() -> None:
    """Where the re-entrancy comes from that ClientConnection.data_received guards against."""
    protocol = Protocol(asyncio.get_running_loop())
    parser = parser_of(protocol)
    large = POST.replace(b": 4", b": 200001")
    ((_, reader),), _, _ = parser.feed_data(large + b"x" * 200_000)
    assert protocol._reading_paused
    assert reader.read_nowait() == b"x" * 200_000
    assert protocol.did == ["resume", b""]
    assert not protocol._reading_paused


async def test_the_end_of_a_full_body_is_seen_when_it_is_read() -> None:
    protocol = Protocol(asyncio.get_running_loop())
    parser = parser_of(protocol)
    large = POST.replace(b": 4", b": 200000")
    ((_, reader),), _, _ = parser.feed_data(large + b"x" * 200_000)
    assert not reader.is_eof()
    reader.read_nowait()
    assert protocol.did == ["resume", b""]
    parser.feed_data(b"")  # what our data_received does with it
    assert reader.is_eof()


async def test_a_handler_has_what_the_edge_gives_it(gateway: Gateway) -> None:
    """`Hearing` makes itself what RequestHandler's `__init__` would make."""

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        raise NotImplementedError

    server = web.Server(handler)
    made = RequestHandler(server, loop=asyncio.get_running_loop(), access_log=None)
    for name in (
        "_loop",
        "_manager",
        "_messages",
        "_parser",
        "_paused",
        "_read_bufsize",
        "_reading_paused",
        "_buffer_paused",
        "transport",
        "max_line_size",
        "max_field_size",
        "max_headers",
    ):
        ours, theirs = getattr(gateway.server(), name), getattr(made, name)
        if name != "_parser":  # made when it is needed
            assert isinstance(ours, type(theirs)), name
    assert made._task_handler is None  # connection_lost of the server asks for it
    for name in ("_pause_reading_for_buffer", "_resume_reading_for_buffer"):
        assert not inspect.signature(getattr(made, name)).parameters
    server.connection_made(made, asyncio.Transport())
    assert server.connections == [made]
    server.connection_lost(made)
    assert server.connections == []


def test_the_two_holds_on_reading_do_not_release_each_other(protocol: Protocol) -> None:
    class Transport(asyncio.Transport):
        paused = False

        def pause_reading(self) -> None:
            self.paused = True

        def resume_reading(self) -> None:
            self.paused = False

    parser_of(protocol)
    protocol.transport = transport = Transport()
    protocol._reading_paused = True
    protocol._pause_reading_for_buffer()
    assert transport.paused
    protocol._resume_reading_for_buffer()
    assert transport.paused  # the reader of a body still holds it
    protocol._pause_reading_for_buffer()
    protocol.resume_reading()
    assert transport.paused  # the buffer still holds it
    protocol._resume_reading_for_buffer()
    assert not transport.paused
