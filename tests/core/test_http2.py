"""Frames and literals, by the examples of their documents and there and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multiplexed import read_block

from gatewayd.core import http2

NUMBERS = st.integers(0, http2.LARGEST)


def test_a_literal_of_the_document() -> None:
    """RFC 7541, C.2.3."""
    assert http2.field(b"password", b"secret") == bytes.fromhex(
        "100870617373776f726406736563726574"
    )


@pytest.mark.parametrize(
    ("size", "head"), [(0, "00"), (126, "7e"), (127, "7f00"), (128, "7f01"), (1337, "7fba09")]
)
def test_a_length_in_a_prefix_of_seven_bits(size: int, head: str) -> None:
    """RFC 7541, 5.1 and C.1."""
    encoded = http2.field(b"", b"x" * size)
    assert encoded == b"\x10\x00" + bytes.fromhex(head) + b"x" * size


@given(st.lists(st.tuples(st.text("abc-", max_size=200), st.text("xyz =/", max_size=70_000))))
def test_a_block_says_what_was_written(fields: list[tuple[str, str]]) -> None:
    block = http2.post(b"/v1", b"r", [(n.encode(), v.encode()) for n, v in fields])
    start = [(":method", "POST"), (":scheme", "http"), (":path", "/v1"), (":authority", "r")]
    assert read_block(block) == start + fields


@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.integers(0, 255), NUMBERS, st.binary(max_size=300)),
        max_size=8,
    ),
    st.binary(max_size=8),
)
def test_frames_are_found_as_far_as_they_are_whole(
    frames: list[tuple[int, int, int, bytes]], rest: bytes
) -> None:
    data = b"".join(http2.frame(*f) for f in frames)
    found = list(http2.read_frames(data + rest))
    assert [(k, f, n, (data + rest)[a:b]) for k, f, n, a, b in found] == frames
    if frames:
        assert list(http2.read_frames(data[:-1] + b"")) == found[:-1] or not frames[-1][3]


def test_a_frame_is_what_the_document_says() -> None:
    """RFC 9113, 4.1."""
    frame = http2.frame(http2.DATA, http2.END_STREAM, 5, b"abc")
    assert frame == bytes.fromhex("000003000100000005") + b"abc"
    assert http2.frame(http2.DATA, 0, 1, bytes(70_000))[:3] == (70_000).to_bytes(3, "big")


@given(
    st.lists(st.tuples(st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF))), st.binary(max_size=5)
)
def test_settings_there_and_back(values: list[tuple[int, int]], rest: bytes) -> None:
    payload = http2.settings(values)[http2.FRAME_HEAD :]
    assert http2.read_settings(payload) == values
    assert (
        http2.read_settings(payload + rest[: 5 - len(payload) % 6 or None])[: len(values)] == values
    )


def test_the_preface() -> None:
    """RFC 9113, 3.4: the magic, and settings right behind it."""
    magic = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    assert http2.PREFACE.startswith(magic)
    rest = http2.PREFACE[len(magic) :]
    kinds = [(kind, number) for kind, _, number, _, _ in http2.read_frames(rest)]
    assert kinds == [(http2.SETTINGS, 0), (http2.WINDOW_UPDATE, 0)]
