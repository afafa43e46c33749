"""Tokens and frames of steering: what one side writes the other reads, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatewayd.core.steering import (
    HELLO,
    asking_slot,
    claim,
    finish,
    read_claim,
    read_finish,
    token,
)
from gatewayd.net.link import FRAME_SIZE

TOKENS = st.builds(token, st.integers(0, 255), st.integers(1, 10**9), st.integers(1, 2**60))
REPLICAS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", fullmatch=True)


@given(slot=st.integers(0, 255), incarnation=st.integers(1, 10**9), number=st.integers(1, 2**60))
def test_a_token_names_the_slot_that_asks(slot: int, incarnation: int, number: int) -> None:
    assert asking_slot(token(slot, incarnation, number)) == slot


@given(
    first=st.tuples(st.integers(0, 99), st.integers(1, 99), st.integers(1, 9999)),
    second=st.tuples(st.integers(0, 99), st.integers(1, 99), st.integers(1, 9999)),
)
def test_no_two_questions_have_one_token(
    first: tuple[int, int, int], second: tuple[int, int, int]
) -> None:
    assert (token(*first) == token(*second)) == (first == second)


@given(TOKENS)
def test_a_token_can_be_a_header_value_and_a_word(value: bytes) -> None:
    assert value.isascii()
    assert value.decode().isprintable()
    assert b" " not in value
    assert len(value) < 64


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"s",
        b"s0",
        b"s0.",
        b"s0.1",
        b"s.1.1",
        b"sx.1.1",
        b"s0.1.xyz",
        b"s0.1.1 ",
        b" s0.1.1",
        b"s0.1.1, s0.1.2",
        b"S0.1.1",
        b"s-1.1.1",
        b"s\xb2.1.1",
        b"s" + b"9" * 6000 + b".1.1",
        b"0123456789abcdef00000001",  # a request's own id
        b"sales-0.1.1",
    ],
)
def test_what_is_no_token_asks_nothing(value: bytes) -> None:
    assert asking_slot(value) is None


@given(value=TOKENS, replica=REPLICAS)
def test_a_claim_says_what_was_written(value: bytes, replica: str) -> None:
    frame = claim(value, replica)
    assert read_claim(frame) == (value, replica)
    assert read_finish(frame) is None
    assert len(frame) <= FRAME_SIZE


@given(TOKENS)
def test_a_finish_says_what_was_written(value: bytes) -> None:
    frame = finish(value)
    assert read_finish(frame) == value
    assert read_claim(frame) is None
    assert len(frame) <= FRAME_SIZE


def test_a_greeting_is_neither() -> None:
    assert read_claim(HELLO) is None
    assert read_finish(HELLO) is None
