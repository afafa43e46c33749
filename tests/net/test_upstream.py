"""A raw upstream connection: bytes of a replica in, what its sink is told out. No sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatewayd.core.model import UnixAddress
from gatewayd.core.retry import Failure
from gatewayd.net.pool import Pool
from gatewayd.net.upstream import UpstreamConnection

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class Clock:
    """All of a loop that a pool needs here."""

    now = 100.0

    def time(self) -> float:
        return self.now

    def call_soon(self, call: Callable[[], None]) -> None:
        call()

    def create_future(self) -> asyncio.Future[None]:
        raise NotImplementedError


class Transport:
    def __init__(self) -> None:
        self.written = b""
        self.aborted = False
        self.reading = True

    def write(self, data: bytes) -> None:
        self.written += data

    def abort(self) -> None:
        self.aborted = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.aborted


class Sink:
    """Notes what it is told; `out` is what a client would get."""

    def __init__(self, refuse: bool = False) -> None:
        self.told: list[Any] = []
        self.out = b""
        self.refuse = refuse
        self.writes = 0

    def response_started(self, connection: UpstreamConnection) -> tuple[bytes, Any]:
        self.told.append(("started", connection.status))
        if self.refuse:
            connection.abort()
            return b"", self
        return b"<head>", self

    def stream(self) -> Callable[[bytes], None]:
        return self.send

    def send(self, data: bytes) -> None:
        self.out += data
        self.writes += 1

    def first_byte(self) -> None:
        self.told.append("first byte")

    def response_ended(self, connection: UpstreamConnection) -> None:
        if connection.received and "first byte" not in self.told:
            self.told.append("first byte")  # of a body that came in one piece, it is the last too
        self.told.append("ended")

    def response_failed(
        self, connection: UpstreamConnection, failure: Failure, detail: str
    ) -> None:
        self.told.append(("failed", failure))

    def tunnel_closed(self, connection: UpstreamConnection) -> None:
        self.told.append("tunnel closed")


class Exchange:
    """One connection that has sent one request."""

    def __init__(self, **begin: Any) -> None:
        self.clock = Clock()
        self.pool = Pool(UnixAddress("/a"), cast(asyncio.AbstractEventLoop, self.clock), idle_s=2.0)
        self.connection = UpstreamConnection(self.pool)
        self.transport = Transport()
        self.connection.connection_made(cast(asyncio.BaseTransport, self.transport))
        self.begin(**begin)

    def begin(self, *, done: bool = True, refuse: bool = False, **begin: Any) -> Sink:
        self.sink = Sink(refuse)
        self.connection.begin(self.sink, REQUEST, **begin)
        self.connection.request_done = done
        return self.sink

    def says(self, *parts: bytes) -> Exchange:
        for part in parts:
            if part and not self.transport.aborted:
                self.connection.data_received(part)
        return self

    def closes(self, error: Exception | None = None) -> Exchange:
        self.connection.connection_lost(error)
        return self

    @property
    def pooled(self) -> bool:
        return self.pool._idle == [self.connection]


COUNTED = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
WHOLE = [("started", 200), "first byte", "ended"]


def test_a_counted_answer_ends_by_its_count_and_the_connection_is_pooled() -> None:
    exchange = Exchange().says(COUNTED)
    assert exchange.transport.written == REQUEST
    assert exchange.sink.told == WHOLE
    assert exchange.sink.out == b"<head>hello"
    assert exchange.connection.received == 5
    assert exchange.pooled


def test_a_chunked_answer_passes_with_its_framing() -> None:
    exchange = Exchange().says(CHUNKED)
    assert exchange.sink.told == WHOLE
    assert exchange.sink.out == b"<head>5\r\nhello\r\n0\r\n\r\n"
    assert exchange.pooled


def test_a_small_answer_is_one_write() -> None:
    assert Exchange().says(COUNTED).sink.writes == 1
    assert Exchange().says(CHUNKED).sink.writes == 1


def test_a_head_alone_is_written_at_once() -> None:
    exchange = Exchange().says(CHUNKED[: CHUNKED.index(b"\r\n\r\n") + 4])
    assert exchange.sink.out == b"<head>"
    assert exchange.sink.told == [("started", 200)]


def test_an_answer_until_the_end_ends_with_a_clean_close_only() -> None:
    start = b"HTTP/1.1 200 OK\r\n\r\nsome"
    exchange = Exchange().says(start, b" more").closes()
    assert exchange.sink.told == WHOLE
    assert exchange.sink.out == b"<head>some more"
    broken = Exchange().says(start).closes(ConnectionResetError())
    assert broken.sink.told[-1] == ("failed", Failure.RESET_MIDSTREAM)


@pytest.mark.parametrize("size", range(len(COUNTED)))
def test_a_counted_answer_that_is_cut_fails(size: int) -> None:
    exchange = Exchange().says(COUNTED[:size]).closes()
    early = size < COUNTED.index(b"\r\n\r\n") + 4
    failure = Failure.BROKEN if early else Failure.RESET_MIDSTREAM
    failure = failure if size else Failure.CLOSED  # only then can the request be repeated
    assert exchange.sink.told[-1] == ("failed", failure)
    assert "ended" not in exchange.sink.told
    assert not exchange.pooled


def test_an_interim_answer_is_an_answer_begun() -> None:
    exchange = Exchange().says(b"HTTP/1.1 100 Continue\r\n\r\n").closes()
    assert exchange.sink.told == [("failed", Failure.BROKEN)]
    assert exchange.connection.pool.take() is None


def test_what_was_heard_of_one_answer_says_nothing_of_the_next() -> None:
    exchange = Exchange().says(COUNTED)
    exchange.pool.take()
    sink = exchange.begin()
    exchange.closes()
    assert sink.told == [("failed", Failure.CLOSED)]


@pytest.mark.parametrize("size", range(len(CHUNKED)))
def test_a_chunked_answer_that_is_cut_fails(size: int) -> None:
    exchange = Exchange().says(CHUNKED[:size]).closes()
    assert exchange.sink.told[-1][0] == "failed"
    assert not exchange.sink.out.endswith(b"0\r\n\r\n")


ANSWERS = [
    COUNTED,
    CHUNKED,
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: a\r\n\r\n" + COUNTED,
    b"HTTP/1.1 204 No\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;a\r\nabc\r\n0\r\nT: 1\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
]


@given(
    st.sampled_from(ANSWERS).flatmap(
        lambda a: st.tuples(
            st.just(a), st.lists(st.integers(1, len(a) - 1), unique=True).map(sorted)
        )
    )
)
def test_segments_do_not_matter(case: tuple[bytes, list[int]]) -> None:
    answer, at = case
    pieces = [answer[i:j] for i, j in zip([0, *at], [*at, len(answer)], strict=True)]
    whole, cut = Exchange().says(answer), Exchange().says(*pieces)
    assert cut.sink.told == whole.sink.told
    assert cut.sink.out == whole.sink.out
    assert cut.connection.received == whole.connection.received
    assert cut.transport.aborted or cut.pooled


@given(st.binary(max_size=80), st.sampled_from([CHUNKED, COUNTED, ANSWERS[3], ANSWERS[5]]))
def test_bytes_behind_an_answer_are_never_pooled_or_passed_on(
    surplus: bytes, answer: bytes
) -> None:
    exchange = Exchange().says(answer + surplus)
    clean = Exchange().says(answer)
    if surplus:
        assert not exchange.pooled
        assert exchange.transport.aborted
        # Either it ended as it should, or it was seen to fail; nothing of the surplus went on.
        assert clean.sink.out.startswith(exchange.sink.out)
        assert exchange.sink.told[-1] in ("ended", ("failed", Failure.RESET_MIDSTREAM))
    else:
        assert exchange.pooled


@given(st.binary(max_size=120))
def test_any_bytes_end_in_an_answer_a_failure_or_more_waiting(data: bytes) -> None:
    exchange = Exchange().says(data).closes()
    assert exchange.sink.told[-1] == "ended" or exchange.sink.told[-1][0] == "failed"


@pytest.mark.parametrize("status", [204, 304])
def test_a_status_without_a_body_has_none_whatever_it_says(status: int) -> None:
    answer = b"HTTP/1.1 %d X\r\nContent-Length: 5\r\n\r\n" % status
    exchange = Exchange().says(answer)
    assert exchange.sink.told == [("started", status), "ended"]
    assert exchange.pooled
    assert not Exchange().says(answer + b"hello").pooled


@pytest.mark.parametrize("head", [COUNTED[:-5], CHUNKED[: CHUNKED.index(b"\r\n\r\n") + 4]])
def test_the_answer_to_head_has_no_body(head: bytes) -> None:
    exchange = Exchange(is_head=True).says(head)
    assert exchange.sink.told == [("started", 200), "ended"]
    assert exchange.pooled
    assert not Exchange(is_head=True).says(head + b"hello").pooled


def test_what_must_not_carry_another_exchange_is_closed() -> None:
    closing = COUNTED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    old = COUNTED.replace(b"1.1", b"1.0")
    for exchange in (
        Exchange().says(closing),
        Exchange().says(old),
        Exchange(is_last=True).says(COUNTED),
        Exchange(done=False).says(COUNTED),
    ):
        assert exchange.sink.told == WHOLE
        assert exchange.transport.aborted
        assert not exchange.pooled


def test_bytes_that_nobody_asked_for_close_an_idle_connection() -> None:
    exchange = Exchange().says(COUNTED).says(COUNTED)
    assert not exchange.pooled
    assert exchange.transport.aborted
    assert exchange.sink.out == b"<head>hello"


def test_an_idle_connection_that_closes_leaves_the_pool() -> None:
    exchange = Exchange().says(COUNTED).closes()
    assert not exchange.pooled
    assert exchange.pool.take() is None


def test_a_second_exchange_knows_nothing_of_the_first() -> None:
    exchange = Exchange().says(CHUNKED)
    assert exchange.pool.take() is exchange.connection
    assert exchange.connection.reused
    sink = exchange.begin()
    exchange.says(COUNTED)
    assert (sink.told, sink.out) == (WHOLE, b"<head>hello")
    assert exchange.connection.received == 5
    exchange.pool.take()
    sink = exchange.begin()
    exchange.says(CHUNKED)
    assert (sink.told, sink.out) == (WHOLE, b"<head>5\r\nhello\r\n0\r\n\r\n")


@pytest.mark.parametrize(
    "head",
    [
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\nA: b\n\n",
        b"HTTP/1.1 101 Go\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"b" * 70_000,
    ],
)
def test_a_bad_head_fails_before_the_answer_began(head: bytes) -> None:
    exchange = Exchange().says(head)
    assert exchange.sink.told == [("failed", Failure.BROKEN)]
    assert exchange.transport.aborted


def test_protocols_are_switched_after_the_whole_request_only() -> None:
    switch = b"HTTP/1.1 101 Go\r\nUpgrade: x\r\n\r\n"
    early = Exchange(wants_upgrade=True, done=False).says(switch)
    assert early.sink.told == [("failed", Failure.BROKEN)]
    assert Exchange(wants_upgrade=True).says(switch).sink.told == [("started", 101)]


def test_endless_interim_answers_are_no_answer() -> None:
    exchange = Exchange()
    for _ in range(2000):
        exchange.says(b"HTTP/1.1 102 Processing\r\n\r\n")
    exchange.says(COUNTED)
    assert exchange.sink.told == WHOLE


def test_a_sink_may_give_the_answer_up_at_its_head() -> None:
    exchange = Exchange(refuse=True).says(COUNTED)
    assert exchange.sink.told == [("started", 200)]
    assert exchange.sink.out == b""
    assert exchange.transport.aborted


def test_an_aborted_exchange_tells_nobody() -> None:
    exchange = Exchange().says(COUNTED[:-2])
    exchange.connection.abort()
    exchange.closes()
    assert exchange.sink.told == [("started", 200), "first byte"]
    assert exchange.transport.aborted


def test_reading_that_was_paused_is_resumed_for_the_next_exchange() -> None:
    exchange = Exchange().says(COUNTED[:-2])
    exchange.connection.pause_reading()
    assert not exchange.transport.reading
    exchange.says(COUNTED[-2:])  # was read before the pause took effect
    assert exchange.pooled
    assert exchange.transport.reading


def test_a_tunnel_passes_everything_until_either_side_ends() -> None:
    exchange = Exchange(wants_upgrade=True)
    exchange.says(b"HTTP/1.1 101 Go\r\nUpgrade: x\r\n\r\nearly")
    assert exchange.sink.told == [("started", 101)]
    out: list[bytes] = []
    resumed: list[None] = []
    write: Callable[[bytes], None] = out.append
    early = exchange.connection.tunnel(write, lambda: resumed.append(None))
    assert early == b"early"
    exchange.says(b"HTTP/1.1 200 OK\r\n\r\n", b"\x00")
    assert b"".join(out) == b"HTTP/1.1 200 OK\r\n\r\n\x00"
    exchange.connection.pause_writing()
    exchange.connection.resume_writing()
    assert len(resumed) == 1
    exchange.closes()
    assert exchange.sink.told[-1] == "tunnel closed"
