"""Whole chunks are told from everything else, as the parser would tell them."""

from __future__ import annotations

import pytest

from gatewayd.core.chunks import LAST, SIZE_LINES, UNKNOWN, walk_chunks


def is_one_chunk(data: bytes) -> bool:
    return data.startswith(SIZE_LINES[len(data)]) and data.endswith(b"\r\n")


def chunk(size: int, line: bytes = b"%x") -> bytes:
    return line % size + b"\r\n" + b"." * size + b"\r\n"


@pytest.mark.parametrize("size", [1, 9, 15, 16, 17, 171, 255, 256, 4087, 4096, 65535, 65536])
@pytest.mark.parametrize("line", [b"%x", b"%X"])
def test_one_whole_chunk_is_known_by_its_length_and_its_line(size: int, line: bytes) -> None:
    whole = chunk(size, line)
    assert is_one_chunk(whole)
    assert not is_one_chunk(whole[:-1])
    assert not is_one_chunk(whole[:-2] + b"..")
    assert not is_one_chunk(whole + b"x")
    assert not is_one_chunk(b"0" + whole[1:-1])


def test_what_is_no_chunk_is_not_taken_for_one() -> None:
    for data in (b"0\r\n\r\n", b"\r\n", b"5;a=b\r\nhello\r\n", b"05\r\nhello\r\n", b"hello\r\n"):
        assert not is_one_chunk(data), data


def test_only_lengths_of_events_are_remembered() -> None:
    for length in range(100_000, 101_000):
        SIZE_LINES[length]
    assert len(SIZE_LINES) <= 4097


@pytest.mark.parametrize(
    ("data", "left"),
    [
        (chunk(5), 0),
        (chunk(5) + chunk(300), 0),
        (chunk(5) + b"a\r\n", 12),
        (chunk(5) + b"a\r\n0123456", 5),
        (b"0\r\n\r\n", LAST),
        (chunk(5) + b"0\r\n\r\n", LAST),
    ],
)
def test_reads_that_need_no_parser(data: bytes, left: int) -> None:
    assert walk_chunks(data, 0) == left


@pytest.mark.parametrize(
    "data",
    [
        b"5",
        b"5\r",
        b"5\r\nhello",  # its line end is missing, whole or in part
        b"5\r\nhello\r",
        b"5\r\nhello..",
        b"5;extension\r\nhello\r\n",
        b"0x5\r\nhello\r\n",
        b"+5\r\nhello\r\n",
        b" 5\r\nhello\r\n",
        b"5\nhello\r\n",
        b"123456789\r\nx",
        b"0\r\nTrailer: x\r\n\r\n",
        b"0\r\n\r\nHTTP/1.1 200 OK\r\n",
        b"0\r\n",
    ],
)
def test_reads_that_are_left_to_the_parser(data: bytes) -> None:
    assert walk_chunks(data, 0) == UNKNOWN


def test_the_rest_of_a_chunk_comes_later() -> None:
    assert walk_chunks(b"lo\r\n", 4) == 0
    assert walk_chunks(b"l", 5) == 4
    assert walk_chunks(b"lo\r\n" + chunk(7), 4) == 0
    assert walk_chunks(b"lo..", 4) == UNKNOWN
    assert walk_chunks(b"lo\r", 4) == UNKNOWN
