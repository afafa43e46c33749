"""What authorities say, in an operator's words, and when they are asked again."""

from __future__ import annotations

import pytest

from gatewayd.core.acme import (
    Problem,
    due,
    due_in,
    in_vain,
    read_problem,
    read_retry_after,
    wait_after,
    ways,
)

DAY = 86400.0


@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        ("caa", "CAA record"),
        ("connection", "port 80 (http-01) or 443 (tls-alpn-01) open"),
        ("dns", "add an A or AAAA record"),
        ("externalAccountRequired", "set `eab_kid` and `eab_hmac_key`"),
        ("incorrectResponse", "somebody else answered"),
        ("rateLimited", "tried again in 2.0 h"),
        ("rejectedIdentifier", "is it a public one?"),
        ("tls", "in front of this gateway terminate TLS"),
        ("unauthorized", "does the name's DNS record lead here"),
        ("userActionRequired", "agree"),
        ("never-heard-of", "the authority says: its words"),
    ],
)
def test_a_refusal_says_what_to_fix_and_what_was_said(kind: str, advice: str) -> None:
    document = {"type": f"urn:ietf:params:acme:error:{kind}", "detail": "its words"}
    sentence = read_problem(document, 400, 7200.0).sentence()
    assert advice in sentence
    assert "its words" in sentence


def test_a_refusal_of_several_parts_is_told_by_its_first() -> None:
    document = {
        "type": "urn:ietf:params:acme:error:compound",
        "detail": "Errors",
        "subproblems": [{"type": "urn:ietf:params:acme:error:caa", "detail": "CAA of a.b"}],
    }
    assert read_problem(document, 403) == Problem("caa", "Errors CAA of a.b", 403)


@pytest.mark.parametrize("document", [None, [], "no", {"type": 4, "detail": None}, {}])
def test_what_is_no_problem_document_is_told_by_its_status(document: object) -> None:
    sentence = read_problem(document, 502).sentence()
    assert sentence.startswith("the authority says:")
    assert "502" in sentence or "no reason" in sentence or "4" in sentence


def test_a_name_is_proven_by_all_ways_at_first_and_by_each_in_turn_later() -> None:
    kinds = ("http-01", "tls-alpn-01", "dns-01")
    assert ways(kinds, 0) == kinds
    assert [ways(kinds, failures)[0] for failures in range(1, 6)] == [
        *("tls-alpn-01", "dns-01", "http-01", "tls-alpn-01", "dns-01"),
    ]
    assert [ways(["dns-01"], failures) for failures in (0, 1, 2)] == [["dns-01"]] * 3
    # Let's Encrypt refuses who failed five times, and gives one back every twelve minutes.
    left, now = 5.0, 0.0
    for failures in range(6):
        for _ in ways(kinds, failures):
            assert left >= 1
            left -= 1
        wait = wait_after(failures + 1, 0.0)
        now, left = now + wait, min(5.0, left + wait / 720)


@pytest.mark.parametrize(
    ("kind", "failed", "problem", "vain"),
    [
        ("tls-alpn-01", "http-01", "connection", False),
        ("tls-alpn-01", "http-01", "unauthorized", False),
        ("tls-alpn-01", "http-01", "dns", True),
        ("dns-01", "http-01", "dns", False),
        ("http-01", "dns-01", "dns", False),
        ("dns-01", "tls-alpn-01", "caa", True),
        ("tls-alpn-01", "http-01", "", False),
    ],
)
def test_no_other_way_is_tried_for_what_it_would_fail_for_too(
    kind: str, failed: str, problem: str, vain: bool
) -> None:
    assert in_vain(kind, failed, Problem(problem, "its words")) is vain
    assert not in_vain(kind, failed, None)


def test_an_authoritys_words_break_no_line_of_the_log() -> None:
    sentence = read_problem({"detail": "a\nERROR forged\x1b[0m" + "x" * 9999}).sentence()
    assert sentence.isprintable()
    assert len(sentence) < 500


def test_retry_after_is_seconds_or_a_date() -> None:
    now = 784111777.0  # the date of RFC 9110
    assert read_retry_after("120", now) == 120
    assert read_retry_after("Sun, 06 Nov 1994 08:50:37 GMT", now) == 60
    assert read_retry_after("Sun, 06 Nov 1994 08:00:00 GMT", now) == 0
    for nothing in (None, "", "soon", "-1", "١"):
        assert read_retry_after(nothing, now) is None


@pytest.mark.parametrize(("lifetime", "left"), [(90, 30), (45, 15), (6, 2)])
def test_renewal_is_at_two_thirds_of_any_lifetime(lifetime: int, left: int) -> None:
    assert due(1000.0, 1000.0 + lifetime * DAY) == pytest.approx(1000.0 + (lifetime - left) * DAY)


def test_advice_is_spread_over_its_window_and_never_after_the_end() -> None:
    assert due_in(100, 200, 1000, 0.25) == 125
    assert due_in(900, 1200, 1000, 0.9) == 1000
    assert due_in(200, 100, 1000, 0.9) == 200  # a window that ends before it begins


def test_pauses_grow_to_hours_and_are_never_shorter_than_asked() -> None:
    assert [wait_after(n, 0.0) / 60 for n in range(1, 6)] == [1, 3, 9, 27, 81]
    assert wait_after(99, 0.0) == 6 * 3600
    assert 60 < wait_after(1, 0.99) < 75
    assert wait_after(1, 0.5, retry_after=9999.0) == 9999.0
