"""Windows of demand: what counts in which, compared with a list of requests as they were."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatewayd.core.demand import WINDOWS_S, Count, Demand, History, Moment, Window, thinned, window

BEGAN_AT = 10_000_000  # ms; the machine was booted long ago
NEVER = 1 << 60


@dataclass(frozen=True)
class Request:
    """Whole seconds after the beginning; `end` is None for one that still runs."""

    start: int
    end: int | None

    @property
    def began(self) -> int:
        return BEGAN_AT + self.start * 1000

    @property
    def ended(self) -> int:
        return NEVER if self.end is None else BEGAN_AT + self.end * 1000


def demand(requests: list[Request], now: int) -> Demand:
    """What a table has counted by then."""
    begun = [r for r in requests if r.began <= now]
    over = [r for r in begun if r.ended <= now]
    return Demand(
        len(begun),
        len(over),
        sum(r.ended - r.began for r in over),
        sum(r.began for r in begun if r.ended > now),
    )


def seen(requests: list[Request], now_s: int, count: Count) -> dict[int, Window]:
    """As control sees it that looks once a second."""
    history = History([Moment(BEGAN_AT - 1, 0, 0, 0)])
    for second in range(now_s + 1):
        at = BEGAN_AT + second * 1000
        history.note(at, demand(requests, at))
    now = BEGAN_AT + now_s * 1000
    return {s: window(history, demand(requests, now), now, s, count) for s in WINDOWS_S}


@pytest.mark.parametrize(
    ("requests", "now", "running", "finished", "started"),
    [
        pytest.param([], 100, (0, 0, 0), (0, 0, 0), (0, 0, 0), id="nothing"),
        pytest.param([Request(99, 99)], 100, (1, 1, 1), (1, 1, 1), (1, 1, 1), id="a short one"),
        pytest.param([Request(50, 51)], 100, (0, 1, 1), (0, 1, 1), (0, 1, 1), id="49 s ago"),
        pytest.param([Request(10, None)], 100, (1, 1, 1), (0, 0, 0), (0, 0, 1), id="it runs"),
        pytest.param([Request(1, None)], 400, (1, 1, 1), (0, 0, 0), (0, 0, 0), id="it runs on"),
        pytest.param([Request(10, 70)], 100, (0, 1, 1), (0, 1, 1), (0, 0, 1), id="60 s, over"),
        pytest.param([Request(10, 70)], 69, (1, 1, 1), (0, 0, 0), (0, 1, 1), id="60 s, at 59"),
        pytest.param([Request(10, 70)], 70, (1, 1, 1), (1, 1, 1), (0, 0, 1), id="60 s, just over"),
        pytest.param([Request(10, 70)], 371, (0, 0, 0), (0, 0, 0), (0, 0, 0), id="long ago"),
        pytest.param(
            [Request(s, s) for s in range(300)], 299, (30, 60, 300), (30, 60, 300), (30, 60, 300),
            id="one a second",
        ),
    ],
)  # fmt: skip
def test_what_counts_in_which_window(
    requests: list[Request],
    now: int,
    running: tuple[int, ...],
    finished: tuple[int, ...],
    started: tuple[int, ...],
) -> None:
    def counted(count: Count) -> tuple[int, ...]:
        return tuple(w.requests for w in seen(requests, now, count).values())

    assert counted("running") == running
    assert counted("finished") == finished
    assert counted("started") == started


def test_request_time_is_a_mean_in_seconds() -> None:
    requests = [Request(90, 91), Request(90, 94), Request(40, None)]
    assert seen(requests, 100, "finished")[30] == Window(2, 2.5)
    assert seen(requests, 100, "running")[30] == Window(3, round((1 + 4 + 60) / 3, 3))
    assert seen(requests, 100, "started")[30] == Window(2, 2.5)
    assert seen([Request(40, None)], 100, "started")[300] == Window(1, 0.0)


@given(
    st.lists(
        st.builds(
            lambda start, takes: Request(start, None if takes is None else start + takes),
            st.integers(0, 400),
            st.none() | st.integers(0, 400),
        ),
        max_size=30,
    ),
    st.integers(0, 500),
)
def test_running_is_each_request_that_ran_in_the_window_once(
    requests: list[Request], now_s: int
) -> None:
    now = BEGAN_AT + now_s * 1000
    for seconds, found in seen(requests, now_s, "running").items():
        since = now - seconds * 1000
        inside = [r for r in requests if r.began <= now and r.ended > since]
        assert found.requests == len(inside)
        took = [min(r.ended, now) - r.began for r in inside]
        assert found.request_time == (round(sum(took) / len(took) / 1000, 3) if took else 0.0)


@given(st.lists(st.integers(0, 400), max_size=40), st.integers(0, 900))
def test_short_requests_count_the_same_in_every_way(starts: list[int], now_s: int) -> None:
    requests = [Request(start, start) for start in starts]
    ways = [seen(requests, now_s, count) for count in ("running", "finished", "started")]
    assert ways[0] == ways[1] == ways[2]


def test_a_longer_window_never_holds_less() -> None:
    requests = [Request(s, s + 7) for s in range(0, 250, 3)]
    for count in ("running", "finished", "started"):
        counts = [w.requests for w in seen(requests, 260, count).values()]
        assert counts == sorted(counts)


def test_a_history_forgets_what_no_window_reaches() -> None:
    history = History([Moment(BEGAN_AT, 0, 0, 0)])
    for second in range(2000):
        history.note(BEGAN_AT + second * 1000, Demand(second, second, 0, 0))
    assert len(history._moments) < 400
    now = BEGAN_AT + 1999 * 1000
    assert history.by(now - 300_000).finished == 1699
    assert not history.idle(now)
    assert history.idle(now + 300_000)


def test_a_thinned_history_has_the_same_counts_a_little_later() -> None:
    history = History([Moment(BEGAN_AT, 0, 0, 0)])
    for second in range(1, 700):
        history.note(BEGAN_AT + second * 1000, Demand(second, second, 0, 0))
    now = BEGAN_AT + 699 * 1000
    fewer = thinned(history.moments(now), 5000)
    assert len(fewer) <= 62
    again = History(fewer)
    for seconds in WINDOWS_S:
        exact = history.by(now - seconds * 1000).finished
        assert 0 <= exact - again.by(now - seconds * 1000).finished <= 5
    assert again.by(now).finished == 699


def test_what_died_has_ended() -> None:
    running = Demand(started=5, finished=3, busy_ms=100, open_ms=2 * BEGAN_AT)
    ended = running.ended(BEGAN_AT + 50)
    assert ended == Demand(5, 5, 200, 0)
    assert ended.running == 0


def test_a_process_that_died_between_two_counts_has_taken_no_time_instead_of_years() -> None:
    assert Demand(0, 0, 0, BEGAN_AT).ended(BEGAN_AT + 50) == Demand(0, 0, 0, 0)
    assert Demand(1, 1, 0, BEGAN_AT).ended(BEGAN_AT + 50) == Demand(1, 1, 0, 0)
