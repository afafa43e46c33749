"""Chunks found without the parser, or with it: the same end, and the same faults."""

from __future__ import annotations

import itertools

from httptools import HttpParserError, HttpResponseParser
from hypothesis import given
from hypothesis import strategies as st

from gatewayd.net.chunked import BrokenChunksError, Chunks

PIECE = st.one_of(
    st.binary(min_size=1, max_size=40).map(lambda data: b"%x\r\n%b\r\n" % (len(data), data)),
    st.sampled_from(
        [
            b"0\r\n\r\n",
            b"0\r\nT: x\r\n\r\n",
            b"3;e\r\nabc\r\n",
            b"A\r\n0123456789\r\n",
            b"3\r\nab\r\n",
        ]
    ),
    st.binary(max_size=5),
)


class Reference:
    def __init__(self) -> None:
        self.complete = False
        self._messages = 0
        self._parser = HttpResponseParser(self)
        self._parser.feed_data(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")

    def on_message_begin(self) -> None:
        self._messages += 1

    def on_message_complete(self) -> None:
        self.complete = True

    def feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except HttpParserError as error:
            raise BrokenChunksError from error
        if self._messages != 1:
            raise BrokenChunksError


def outcome(follower: Chunks | Reference, data: bytes, cuts: list[int]) -> tuple[str, int]:
    """What it says of the bytes cut into reads, and at which of them."""
    edges = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    for number, (begin, end) in enumerate(itertools.pairwise(edges)):
        if begin == end:
            continue
        try:
            follower.feed(data[begin:end])
        except BrokenChunksError:
            return "broken", number
        if follower.complete:
            return "complete", number
    return "open", len(edges)


@given(st.lists(PIECE, max_size=8).map(b"".join), st.lists(st.integers(0, 400), max_size=8))
def test_as_the_parser_does(data: bytes, cuts: list[int]) -> None:
    assert outcome(Chunks(), data, cuts) == outcome(Reference(), data, cuts)


def test_between_chunks_there_is_nothing_to_remember() -> None:
    chunks = Chunks()
    for data in (b"5\r\nhello\r\n", b"5\r\nhello\r\n3\r\nyou\r\n", b"a\r\n01234", b"56789\r\n"):
        chunks.feed(data)
    assert chunks.between
    assert repr(chunks) == "<Chunks 0>"
    chunks.feed(b"5;extension\r\nhello\r\n")
    assert not chunks.between
    assert repr(chunks) == "<Chunks parsed>"
