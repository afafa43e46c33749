from __future__ import annotations

import hashlib

import pytest

from gatewayd.core.auth import Judged, Verdict, bearer_token, index_tokens, known_token
from gatewayd.core.model import Token


@pytest.mark.parametrize(
    ("value", "token"),
    [
        (b"Bearer abc", b"abc"),
        (b"bearer abc", b"abc"),
        (b"BEARER   abc  ", b"abc"),
        (b"  Bearer abc", b"abc"),
        (b"Bearer a.b-c_d~e+f/g==", b"a.b-c_d~e+f/g=="),
        (b"Bearer \xff", b"\xff"),
        (None, None),
        (b"", None),
        (b"Bearer", None),
        (b"Bearer ", None),
        (b"Bearer a b", None),
        (b"Basic abc", None),
        (b"abc", None),
        (b"Bearer\tabc", None),
        (b"Bearerabc", None),
    ],
)
def test_the_token_of_a_head(value: bytes | None, token: bytes | None) -> None:
    assert bearer_token(value) == token


def test_only_the_very_token_is_known() -> None:
    alice = Token("alice", hashlib.sha256(b"sesame").digest())
    bob = Token("bob", hashlib.sha256(b"other").digest())
    index = index_tokens((alice, bob))
    assert known_token(index, b"sesame") is alice
    assert known_token(index, b"other") is bob
    for wrong in (b"", b"sesam", b"sesame ", b"Sesame", alice.sha256):
        assert known_token(index, wrong) is None
    assert known_token({}, b"sesame") is None


def test_a_token_that_hashes_to_nothing_is_not_somebody() -> None:
    """The digest that stands in for "nobody" belongs to no token."""
    assert known_token(index_tokens((Token("odd", bytes(32)),)), b"x") is None


@pytest.mark.parametrize(
    ("verdict", "at", "fresh", "unknown"),
    [
        (Verdict.YES, 9.9, True, Verdict.STALE),
        (Verdict.YES, 10.0, False, Verdict.STALE),
        (Verdict.YES, 109.9, False, Verdict.STALE),
        (Verdict.YES, 110.0, False, Verdict.UNKNOWN),
        (Verdict.NO, 9.9, True, Verdict.UNKNOWN),
        (Verdict.NO, 10.0, False, Verdict.UNKNOWN),
    ],
)
def test_how_long_a_word_counts(verdict: Verdict, at: float, fresh: bool, unknown: Verdict) -> None:
    judged = Judged(verdict, 0.0, cache=10.0, stale=100.0)
    assert judged.verdict_at(at) is (verdict if fresh else Verdict.UNKNOWN)
    assert judged.when_unknown(at) is unknown


def test_who_does_not_answer_is_not_asked_by_every_request() -> None:
    judged = Judged(Verdict.YES, 0.0, cache=10.0, stale=100.0)
    assert judged.not_answered(20.0) is Verdict.STALE
    assert judged.verdict_at(20.9) is Verdict.STALE
    assert judged.verdict_at(21.0) is Verdict.UNKNOWN
    assert judged.not_answered(109.5) is Verdict.STALE
    assert judged.verdict_at(110.1) is Verdict.UNKNOWN
    assert judged.not_answered(110.1) is Verdict.UNKNOWN
