"""The choice of an endpoint: loads, salt, what was tried, and what is left out after failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatewayd.core.balancer import Ejections, pick
from gatewayd.core.model import Balance, Endpoint, UnixAddress

BALANCES: tuple[Balance, ...] = ("least_requests", "round_robin", "random")
balances = st.sampled_from(BALANCES)


class Counts:
    """Requests in flight, by endpoint index."""

    def __init__(self, counts: Mapping[int, int] | None = None) -> None:
        self.counts = counts or {}

    def loads(self, indexes: Iterable[int]) -> list[int]:
        return [self.counts.get(index, 0) for index in indexes]


def endpoints(names: str) -> tuple[Endpoint, ...]:
    return tuple(
        Endpoint(id=name, address=UnixAddress(f"/run/{name}.sock"), index=ord(name))
        for name in names
    )


def choose(
    names: str,
    *,
    loads: Mapping[str, int] | None = None,
    balance: Balance = "least_requests",
    salt: int = 0,
    ejections: Ejections | None = None,
    now: float = 0.0,
    tried: str = "",
) -> str:
    endpoint = pick(
        endpoints(names),
        Counts({ord(name): n for name, n in (loads or {}).items()}),
        balance=balance,
        salt=salt,
        ejections=ejections or Ejections(),
        now=now,
        tried=frozenset(tried),
    )
    return endpoint.id if endpoint else ""


def chosen(names: str, salts: int, **changes: object) -> Counter[str]:
    return Counter(choose(names, salt=salt, **changes) for salt in range(salts))  # type: ignore[arg-type]


def out(*names: str, at: float = 0.0) -> Ejections:
    ejections = Ejections()
    for name in names:
        ejections.failed(name, at)
    return ejections


@pytest.mark.parametrize("balance", BALANCES)
def test_no_endpoint_and_only_one(balance: Balance) -> None:
    assert choose("", balance=balance) == ""
    assert choose("a", balance=balance, salt=7) == "a"
    assert choose("a", balance=balance, ejections=out("a")) == "a"
    assert choose("a", balance=balance, tried="a") == "a"


@pytest.mark.parametrize(
    ("loads", "shares"),
    [
        ({"a": 2, "b": 1, "c": 3}, {"b": 60}),
        ({"a": 1, "b": 0, "c": 0}, {"b": 30, "c": 30}),
        ({}, {"a": 20, "b": 20, "c": 20}),
        ({"a": 5, "b": 5, "c": 5}, {"a": 20, "b": 20, "c": 20}),
    ],
)
def test_least_requests_shares_ties_evenly(loads: dict[str, int], shares: dict[str, int]) -> None:
    assert chosen("abc", 60, loads=loads) == shares


def test_round_robin_takes_turns_whatever_the_loads() -> None:
    turns = [choose("abc", balance="round_robin", salt=n, loads={"a": 9}) for n in range(6)]
    assert "".join(turns) == "abcabc"


def test_random_follows_its_salt() -> None:
    assert chosen("abc", 60, balance="random", loads={"a": 9}) == {"a": 20, "b": 20, "c": 20}


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 50)), st.integers(0, 2**32))
def test_least_requests_never_passes_over_a_less_busy_endpoint(
    loads: dict[str, int], salt: int
) -> None:
    busy = {name: loads.get(name, 0) for name in "abcdef"}
    assert busy[choose("abcdef", loads=loads, salt=salt)] == min(busy.values())


@given(st.integers(2, 8), st.integers(1, 5), balances)
def test_sound_endpoints_share_evenly(count: int, rounds: int, balance: Balance) -> None:
    names = "abcdefgh"[:count]
    assert set(chosen(names, count * rounds, balance=balance).values()) == {rounds}


# --- what was tried, what is ejected --------------------------------------------------------------


@pytest.mark.parametrize(
    ("ejected", "tried", "expected"),
    [
        ("", "a", "bc"),
        ("", "ab", "c"),
        ("", "abc", "abc"),  # nothing else is left: again, rather than not at all
        ("a", "", "bc"),
        ("ab", "", "c"),
        ("a", "b", "c"),
        ("a", "bc", "bc"),  # sound but tried comes before ejected
        ("abc", "", "a"),  # all out: the one due soonest
        ("abc", "a", "b"),
        ("abc", "ab", "c"),
        ("abc", "abc", "a"),
    ],
)
def test_who_is_left_to_choose_from(ejected: str, tried: str, expected: str) -> None:
    ejections = Ejections()
    for moment, name in enumerate(ejected):
        ejections.failed(name, moment / 100)
    assert set(chosen("abc", 12, ejections=ejections, tried=tried, now=0.5)) == set(expected)


def test_an_ejected_endpoint_is_tried_with_one_request() -> None:
    ejections = out("a")
    assert set(chosen("ab", 10, ejections=ejections, now=0.99)) == {"b"}
    assert choose("ab", ejections=ejections, now=1.0, loads={"a": 99}) == "a"
    assert set(chosen("ab", 10, ejections=ejections, now=1.01)) == {"b"}


def test_one_that_somebody_else_chose_is_admitted_when_it_is_due() -> None:
    ejections = out("b")
    assert ejections.admits("a", 0.0)
    assert not ejections.admits("b", 0.9)
    assert ejections.admits("b", 1.0)  # the trial
    assert not ejections.admits("b", 1.5)
    ejections.succeeded("b")
    assert ejections.admits("b", 1.5)


def test_a_trial_that_succeeds_brings_it_back() -> None:
    ejections = out("a")
    assert choose("ab", ejections=ejections, now=1.0) == "a"
    ejections.succeeded("a")
    assert not ejections
    assert chosen("ab", 10, ejections=ejections, now=1.1) == {"a": 5, "b": 5}


def trials(ejections: Ejections, *, until: float, refused: bool) -> list[float]:
    """When an endpoint that fails at once is tried, with a request every tenth of a second."""
    times = []
    for tenth in range(int(until * 10)):
        if choose("ab", ejections=ejections, now=tenth / 10) == "a":
            ejections.failed("a", tenth / 10, refused=refused)
            times.append(tenth / 10)
    return times


def test_failed_trials_come_at_growing_distances() -> None:
    times = trials(out("a"), until=130, refused=False)
    assert times == [1, 3, 7, 15, 31, 61, 91, 121]


def test_an_address_that_refuses_is_asked_at_a_steady_pace() -> None:
    ejections = Ejections()
    ejections.failed("a", 0.0, refused=True)
    assert trials(ejections, until=3, refused=True) == [0.5, 1, 1.5, 2, 2.5]


def test_a_crash_under_many_requests_is_one_failure() -> None:
    ejections = Ejections()
    for _ in range(100):
        ejections.failed("a", 0.0)
    assert choose("ab", ejections=ejections, now=1.0) == "a"


def test_a_late_failure_of_an_older_request_puts_the_trial_off_but_not_further_apart() -> None:
    ejections = out("a")
    ejections.failed("a", 0.8)
    assert choose("ab", ejections=ejections, now=1.5) == "b"
    assert choose("ab", ejections=ejections, now=1.8) == "a"


def test_a_trial_without_news_is_followed_by_another() -> None:
    ejections = out("a")
    assert choose("ab", ejections=ejections, now=1.0) == "a"  # a client that left, say
    assert choose("ab", ejections=ejections, now=1.9) == "b"
    assert choose("ab", ejections=ejections, now=2.0) == "a"


def test_a_request_that_failed_already_is_not_the_one_that_tries() -> None:
    ejections = out("a")
    assert choose("abc", ejections=ejections, now=5.0, tried="b") == "c"


def test_the_last_one_is_used_although_it_fails() -> None:
    ejections = Ejections()
    for tenth in range(100):
        assert choose("a", ejections=ejections, now=tenth / 10) == "a"
        ejections.failed("a", tenth / 10)


def test_one_that_comes_back_is_found_while_all_are_out() -> None:
    ejections = Ejections()
    for name in "abc":
        ejections.failed(name, 0.0, refused=True)
    now, picks = 0.1, ""
    while not picks.endswith("b"):
        picks += choose("abc", ejections=ejections, now=now)
        if picks[-1] != "b":
            ejections.failed(picks[-1], now, refused=True)
        now += 0.1
    assert len(picks) <= 3


def test_endpoints_that_left_the_upstream_are_forgotten() -> None:
    ejections = out("a", "b")
    ejections.retain(["b", "c"])
    assert "a" not in ejections
    assert "b" in ejections
    assert repr(ejections) == "<Ejections ['b']>"


STEPS = st.lists(
    st.tuples(
        st.sampled_from(("fail", "refuse", "succeed", "pick")),
        st.sampled_from("abcd"),
        st.floats(0, 5),
        st.frozensets(st.sampled_from("abcd"), max_size=3),
    ),
    max_size=50,
)


@given(STEPS, balances)
def test_there_is_always_one_of_the_endpoints_and_a_sound_untried_one_first(
    steps: list[tuple[str, str, float, frozenset[str]]], balance: Balance
) -> None:
    ejections, now = Ejections(), 0.0
    last_trial: dict[str, float] = {}
    for salt, (what, name, gap, tried) in enumerate(steps):
        now += gap
        if what == "succeed":
            ejections.succeeded(name)
            last_trial.pop(name, None)
        elif what != "pick":
            ejections.failed(name, now, refused=what == "refuse")
        else:
            sound = {n for n in "abcd" if n not in ejections}
            choice = choose(
                "abcd",
                balance=balance,
                salt=salt,
                ejections=ejections,
                now=now,
                tried="".join(tried),
            )
            assert choice in set("abcd")
            if choice not in sound and sound:
                assert not tried
                assert now - last_trial.get(choice, -1.0) >= 0.5
                last_trial[choice] = now
            elif sound - tried:
                assert choice in sound - tried


@given(STEPS, balances)
def test_nobody_stays_out_for_longer_than_half_a_minute(
    steps: list[tuple[str, str, float, frozenset[str]]], balance: Balance
) -> None:
    ejections, now = Ejections(), 0.0
    for what, name, gap, _ in steps:
        now += gap
        if what in ("fail", "refuse"):
            ejections.failed(name, now, refused=what == "refuse")
        elif what == "pick":
            choose("abcd", balance=balance, ejections=ejections, now=now)
    now += 30.0
    for _ in range(4):  # each that is still out gets its trial
        if ejections:
            ejections.succeeded(choose("abcd", balance=balance, ejections=ejections, now=now))
    assert not ejections
    assert chosen("abcd", 4, balance=balance, ejections=ejections, now=now) == Counter("abcd")
