"""What may be repeated: a table of every case, and the promises as properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatewayd.core.retry import (
    IDEMPOTENT,
    Fail,
    Failure,
    Retry,
    Sent,
    decide,
)

ELSEWHERE = Retry(avoid_endpoint=True, fresh=False)
ELSEWHERE_FRESH = Retry(avoid_endpoint=True, fresh=True)
ERROR = Fail(502, "upstream_error")
TIMEOUT = Fail(504, "upstream_timeout")


@pytest.mark.parametrize(
    ("method", "failure", "sent", "reused", "expected"),
    [
        ("GET", Failure.CONNECT, Sent.NOTHING, False, ELSEWHERE),
        ("POST", Failure.CONNECT, Sent.NOTHING, False, ELSEWHERE),
        ("GET", Failure.TIMEOUT_CONNECT, Sent.NOTHING, False, ELSEWHERE),
        ("POST", Failure.TIMEOUT_CONNECT, Sent.NOTHING, False, ELSEWHERE),
        ("GET", Failure.CLOSED, Sent.ALL, True, ELSEWHERE_FRESH),
        ("PUT", Failure.CLOSED, Sent.SOME, True, ELSEWHERE_FRESH),
        ("POST", Failure.CLOSED, Sent.NOTHING, True, ELSEWHERE_FRESH),
        ("GET", Failure.CLOSED, Sent.ALL, False, ERROR),
        ("POST", Failure.CLOSED, Sent.ALL, True, ERROR),
        ("POST", Failure.CLOSED, Sent.SOME, True, ERROR),
        ("PATCH", Failure.CLOSED, Sent.ALL, True, ERROR),
        ("POST", Failure.CLOSED, Sent.UNREAD, True, ELSEWHERE_FRESH),
        ("POST", Failure.CLOSED, Sent.UNREAD, False, ELSEWHERE_FRESH),
        ("POST", Failure.BROKEN, Sent.UNREAD, True, ERROR),
        ("POST", Failure.CLOSED, Sent.ALL, False, ERROR),
        ("GET", Failure.BROKEN, Sent.ALL, True, ERROR),
        ("POST", Failure.BROKEN, Sent.ALL, False, ERROR),
        ("GET", Failure.RESET_MIDSTREAM, Sent.ALL, True, ERROR),
        ("GET", Failure.TIMEOUT_FIRST_BYTE, Sent.ALL, True, TIMEOUT),
        ("POST", Failure.TIMEOUT_FIRST_BYTE, Sent.SOME, False, TIMEOUT),
        ("GET", Failure.TIMEOUT_IDLE, Sent.ALL, False, TIMEOUT),
        ("GET", Failure.TIMEOUT_TOTAL, Sent.ALL, False, TIMEOUT),
    ],
)
def test_first_attempt_with_three_replicas(
    method: str, failure: Failure, sent: Sent, reused: bool, expected: Retry | Fail
) -> None:
    assert (
        decide(
            attempt=1,
            failure=failure,
            sent=sent,
            idempotent=(method in IDEMPOTENT),
            reused=reused,
            endpoints=3,
        )
        == expected
    )


@pytest.mark.parametrize(
    ("failure", "endpoints", "attempts"),
    [
        (Failure.CONNECT, 1, 2),
        (Failure.CONNECT, 2, 3),
        (Failure.CONNECT, 3, 3),
        (Failure.CONNECT, 50, 3),
        (Failure.TIMEOUT_CONNECT, 1, 1),  # the client would wait for the same nothing twice
        (Failure.TIMEOUT_CONNECT, 2, 2),
        (Failure.TIMEOUT_CONNECT, 50, 3),
        (Failure.CLOSED, 1, 2),
        (Failure.CLOSED, 9, 3),
        (Failure.BROKEN, 9, 1),
    ],
)
def test_attempts_are_bounded(failure: Failure, endpoints: int, attempts: int) -> None:
    made = 1
    while isinstance(
        decide(
            attempt=made,
            failure=failure,
            sent=Sent.NOTHING if failure is not Failure.BROKEN else Sent.ALL,
            idempotent=True,
            reused=True,
            endpoints=endpoints,
        ),
        Retry,
    ):
        made += 1
    assert made == attempts


def test_a_lone_replica_is_not_avoided() -> None:
    assert decide(
        attempt=1,
        failure=Failure.CLOSED,
        sent=Sent.ALL,
        idempotent=True,
        reused=True,
        endpoints=1,
    ) == Retry(avoid_endpoint=False, fresh=True)


@given(st.sampled_from(Failure), st.sampled_from(Sent))
def test_without_replicas_the_client_is_told_so(failure: Failure, sent: Sent) -> None:
    assert decide(
        attempt=1, failure=failure, sent=sent, idempotent=True, reused=True, endpoints=0
    ) == Fail(503, "no_ready_replica")


@given(
    st.integers(1, 5),
    st.sampled_from(Failure),
    st.sampled_from((Sent.SOME, Sent.ALL)),
    st.booleans(),
    st.integers(0, 10),
)
def test_a_post_that_may_have_been_read_is_never_repeated(
    attempt: int, failure: Failure, sent: Sent, reused: bool, endpoints: int
) -> None:
    outcome = decide(
        attempt=attempt,
        failure=failure,
        sent=sent,
        idempotent=False,
        reused=reused,
        endpoints=endpoints,
    )
    assert isinstance(outcome, Fail)


@given(
    st.integers(1, 5),
    st.sampled_from(Failure),
    st.sampled_from(Sent),
    st.booleans(),
    st.booleans(),
    st.integers(1, 10),
)
def test_what_is_not_repeated_says_whether_it_took_too_long(
    attempt: int, failure: Failure, sent: Sent, idempotent: bool, reused: bool, endpoints: int
) -> None:
    outcome = decide(
        attempt=attempt,
        failure=failure,
        sent=sent,
        idempotent=idempotent,
        reused=reused,
        endpoints=endpoints,
    )
    if isinstance(outcome, Fail):
        assert outcome == (TIMEOUT if "timeout" in failure.kind else ERROR)
    else:
        assert attempt < 3
        assert failure in (Failure.CONNECT, Failure.TIMEOUT_CONNECT, Failure.CLOSED)


@pytest.mark.parametrize("method", ["POST", "PATCH", "CONNECT", "get", "X"])
def test_other_methods_are_not_idempotent(method: str) -> None:
    assert method not in IDEMPOTENT
