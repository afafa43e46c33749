"""Desired against observed: tables for the decisions, properties for the whole loop."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatewayd.core.reconcile import (
    MAX_ADDS,
    PATIENCE_S,
    Actions,
    Asked,
    ObservedTarget,
    backoff,
    plan,
)

A, B, C = "http://127.0.0.1:10001", "http://127.0.0.1:10002", "http://127.0.0.1:10003"


def seen(*urls: str, healthy: bool = True) -> list[ObservedTarget]:
    return [ObservedTarget(f"id of {url}", url, healthy) for url in urls]


@pytest.mark.parametrize(
    ("desired", "observed", "asked", "expected"),
    [
        pytest.param([], [], {}, Actions(), id="nothing wanted, nothing there"),
        pytest.param([A, B], seen(B, A), {}, Actions(), id="as wanted"),
        pytest.param([B, A], [], {}, Actions(add=(B, A)), id="in the order of desired"),
        pytest.param([A], seen(A, B), {}, Actions(remove=(f"id of {B}",)), id="ghost"),
        pytest.param([C], seen(A), {}, Actions(add=(C,), remove=(f"id of {A}",)), id="swap"),
        pytest.param([A], [], {A: Asked(99.0)}, Actions(waiting=frozenset({A})), id="asked"),
        pytest.param([A], [], {A: Asked(94.0)}, Actions(add=(A,)), id="asked in vain"),
        pytest.param(
            [A, B], [], {A: Asked(94.0, tries=3)}, Actions(add=(B, A)), id="failed ones last"
        ),
        pytest.param([], [], {A: Asked(99.0)}, Actions(waiting=frozenset({A})), id="a ghost to be"),
        pytest.param([], [], {A: Asked(94.0)}, Actions(), id="a ghost that did not come"),
        pytest.param(
            [], seen(A), {A: Asked(99.0)}, Actions(remove=(f"id of {A}",)), id="a ghost that came"
        ),
        pytest.param(
            [A],
            seen(A, healthy=False),
            {A: Asked(99.0)},
            Actions(waiting=frozenset({A})),
            id="not healthy yet",
        ),
        pytest.param(
            [A],
            seen(A, healthy=False),
            {A: Asked(94.0)},
            Actions(remove=(f"id of {A}",)),
            id="stays unhealthy",
        ),
        pytest.param(
            [A], seen(A, healthy=False), {}, Actions(remove=(f"id of {A}",)), id="turned unhealthy"
        ),
        pytest.param([A], seen(A), {A: Asked(99.0)}, Actions(), id="asked for and there"),
        pytest.param(
            [A],
            [ObservedTarget("sick", A, healthy=False), ObservedTarget("well", A)],
            {},
            Actions(remove=("sick",)),
            id="twice: the healthy one stays",
        ),
    ],
)
def test_plan(
    desired: list[str],
    observed: list[ObservedTarget],
    asked: dict[str, Asked],
    expected: Actions,
) -> None:
    assert plan(desired, observed, asked, now=100.0) == expected


def test_no_more_than_four_registrations_are_under_way() -> None:
    urls = [f"http://127.0.0.1:{port}" for port in range(10001, 10012)]
    asked = {urls[0]: Asked(99.0), urls[1]: Asked(99.5)}
    assert plan(urls, [], asked, now=100.0).add == tuple(urls[2:4])
    assert plan(urls, [], {}, now=100.0).add == tuple(urls[:4])


urls = st.sampled_from([f"http://127.0.0.1:{port}" for port in range(10001, 10009)])
observations = st.lists(
    st.builds(ObservedTarget, st.uuids().map(str), urls, st.booleans()),
    unique_by=lambda target: target.id,
)
asks = st.dictionaries(urls, st.builds(Asked, st.floats(80.0, 100.0), st.integers(1, 9)))


@given(st.lists(urls, unique=True), observations, asks)
def test_a_step_never_harms(
    desired: list[str], observed: list[ObservedTarget], asked: dict[str, Asked]
) -> None:
    actions = plan(desired, observed, asked, now=100.0)
    there = {target.url for target in observed}
    assert set(actions.add) <= set(desired) - there - actions.waiting
    assert len(actions.add) + len(actions.waiting) <= max(MAX_ADDS, len(actions.waiting))
    assert len(set(actions.remove)) == len(actions.remove)
    kept = [target for target in observed if target.id not in actions.remove]
    assert {target.url for target in kept} <= set(desired)
    assert len({target.url for target in kept}) == len(kept)
    healthy = {target.url for target in observed if target.healthy} & set(desired)
    assert healthy <= {target.url for target in kept if target.healthy}
    assert plan(desired, observed, asked, now=100.0) == actions
    if actions.settled:
        assert {target.url for target in kept if target.healthy} == set(desired)


@dataclass
class Model:
    """A router that registers late, fails some registrations and cannot be hurried."""

    delays: list[float | None]
    targets: dict[str, ObservedTarget] = field(default_factory=dict)
    jobs: list[tuple[float, str]] = field(default_factory=list)
    count: int = 0

    def add(self, url: str, now: float) -> None:
        delay = self.delays.pop() if self.delays else 0.0
        if delay is not None:
            self.jobs.append((now + delay, url))

    def advance(self, now: float) -> None:
        for due, url in sorted(self.jobs):
            if due <= now:
                self.jobs.remove((due, url))
                self.count += 1
                self.targets[url] = ObservedTarget(str(self.count), url)

    def remove(self, id_: str) -> None:
        self.targets = {url: at for url, at in self.targets.items() if at.id != id_}


@given(
    st.lists(st.lists(urls, unique=True), min_size=1, max_size=6),
    st.lists(st.one_of(st.none(), st.floats(0.0, 2 * PATIENCE_S)), max_size=12),
)
def test_the_loop_ends_with_exactly_what_is_wanted(
    wishes: list[list[str]], delays: list[float | None]
) -> None:
    router = Model(list(delays))
    asked: dict[str, Asked] = {}
    now = 0.0

    def step(desired: list[str]) -> Actions:
        observed = list(router.targets.values())
        for target in observed:
            asked.pop(target.url, None)
        actions = plan(desired, observed, asked, now)
        for url in actions.add:
            asked[url] = Asked(now, asked[url].tries + 1 if url in asked else 1)
            router.add(url, now)
        for id_ in actions.remove:
            router.remove(id_)
        return actions

    for wish in wishes:
        for _ in range(3):
            step(wish)
            now += 0.5
            router.advance(now)
    for _ in range(400):
        idle = not router.jobs
        if step(wishes[-1]).settled and idle:
            break
        now += 0.5
        router.advance(now)
    assert set(router.targets) == set(wishes[-1])


@given(st.integers(0, 10_000), st.floats(0.01, 10.0), st.floats(0.01, 100.0))
def test_backoff_grows_up_to_its_limit(attempt: int, first: float, limit: float) -> None:
    delay = backoff(attempt, first, limit)
    assert 0 < delay <= limit
    assert delay <= backoff(attempt + 1, first, limit)


def test_backoff_doubles() -> None:
    assert [backoff(n, 0.1, 5.0) for n in range(7)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0]
    assert [backoff(n, 1.0, 30.0) for n in range(6)] == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0]
