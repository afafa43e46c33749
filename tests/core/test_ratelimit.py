"""Leaky buckets against a plain transcription of nginx's algorithm."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatewayd.core.model import RateLimit
from gatewayd.core.ratelimit import (
    Rule,
    compile_limits,
    longest_prefix,
    rate_milli,
    retry_after_s,
    take,
)


class NginxZone:
    """ngx_http_limit_req_lookup() for one key and one limit, line by line, with C's types."""

    def __init__(self, rate: int, burst: int) -> None:
        self.rate = rate  # as ngx_http_limit_req_zone() leaves it: * 1000 / scale
        self.burst = burst * 1000  # as ngx_http_limit_req() leaves it
        self.node: tuple[int, int] | None = None  # excess, last

    def lookup(self, now: int) -> bool:
        if self.node is None:
            self.node = (0, now)
            return True
        node_excess, last = self.node
        ms = now - last
        if ms < -60000:
            ms = 1
        elif ms < 0:
            ms = 0
        leaked = self.rate * ms // 1000
        excess = node_excess - leaked + 1000
        if excess < 0:
            excess = 0
        if excess > self.burst:
            return False  # NGX_BUSY
        self.node = (excess, now if ms else last)
        return True


class Bucket:
    """What a store does with `take`."""

    def __init__(self, rate: int, burst: int) -> None:
        self.rate, self.burst = rate, burst
        self.state: tuple[int, int] | None = None

    def take(self, now: int) -> int:
        if self.state is None:
            self.state = (0, now)
            return 0
        wait_ms, *state = take(*self.state, now, self.rate, self.burst)
        self.state = (state[0], state[1])
        return wait_ms


def passed(arrivals: list[int], rate: int, burst: int) -> list[int]:
    bucket = Bucket(rate, burst)
    return [at for at in arrivals if bucket.take(at) == 0]


RATES = st.one_of(
    st.sampled_from([1, 16, 83, 500, 999, 1000, 1001, 5000, 100_000]), st.integers(1, 10_000_000)
)
BURSTS = st.one_of(st.integers(0, 5), st.integers(0, 10_000))
# Gaps that dwell around an interval of the rate, some backwards, a few beyond nginx's minute.
GAPS = st.lists(
    st.one_of(
        st.just(0),
        st.integers(0, 30),
        st.integers(0, 5000),
        st.integers(-50, -1),
        st.sampled_from([-60_000, -60_001, -100_000, 60_000, 10**9]),
    ),
    max_size=80,
)


@given(RATES, BURSTS, GAPS)
def test_every_decision_is_nginxs(rate: int, burst: int, gaps: list[int]) -> None:
    zone, bucket = NginxZone(rate, burst), Bucket(rate, burst)
    now = 10**12
    for gap in gaps:
        now += gap
        assert (bucket.take(now) == 0) == zone.lookup(now)
        assert bucket.state == zone.node


@given(RATES, BURSTS, GAPS)
def test_a_refusal_names_the_first_millisecond_that_would_pass(
    rate: int, burst: int, gaps: list[int]
) -> None:
    bucket = Bucket(rate, burst)
    now = 10**12
    for gap in gaps:
        now += gap
        if wait_ms := bucket.take(now):
            assert bucket.state is not None
            assert take(*bucket.state, now + wait_ms, rate, burst)[0] == 0
            assert take(*bucket.state, now + wait_ms - 1, rate, burst)[0] == 1


@given(RATES, st.integers(0, 50), st.integers(1, 200))
def test_burst_and_one_more_pass_at_one_instant(rate: int, burst: int, requests: int) -> None:
    assert len(passed([7] * requests, rate, burst)) == min(requests, burst + 1)


@given(RATES, st.integers(0, 20), st.integers(1, 50))
def test_no_stretch_of_time_lets_more_through_than_rate_and_burst(
    rate: int, burst: int, gap_ms: int
) -> None:
    arrivals = list(range(0, 200 * gap_ms, gap_ms))
    elapsed = arrivals[-1]
    assert len(passed(arrivals, rate, burst)) <= burst + 2 + rate * elapsed // 1_000_000


@pytest.mark.parametrize(
    ("rps", "burst", "arrivals", "expected"),
    [
        pytest.param(5, 3, [0] * 6, [0] * 4, id="burst and one"),
        pytest.param(5, 3, [0] * 5 + [199, 200, 201], [0] * 4 + [200], id="then one per interval"),
        pytest.param(5, 0, [0, 0, 199, 200, 399, 400], [0, 200, 400], id="burst 0: the interval"),
        pytest.param(1, 1, [0, 0, 999, 1000, 1001], [0, 0, 1000], id="a second"),
        pytest.param(5, 3, [0] * 4 + [800] * 5, [0] * 4 + [800] * 4, id="refilled"),
        pytest.param(5, 3, [0] * 4 + [10**9] * 6, [0] * 4 + [10**9] * 4, id="never overfilled"),
        pytest.param(5, 0, [0, 100, 150, 190, 200], [0, 200], id="refusals leave no trace"),
        pytest.param(1 / 60, 0, [0, 59_999, 62_499, 62_500], [0, 62_500], id="1r/m is 16/1000r/s"),
        pytest.param(5, 1, [100, 90, 80], [100, 90], id="a clock read earlier counts as no time"),
    ],
)
def test_arrivals_that_pass(
    rps: float, burst: int, arrivals: list[int], expected: list[int]
) -> None:
    assert passed(arrivals, rate_milli(rps), burst) == expected


@given(st.integers(1, 600_000))
def test_rates_per_minute_are_rounded_as_nginx_does(per_minute: int) -> None:
    assert rate_milli(per_minute / 60) == per_minute * 1000 // 60


@given(st.integers(1, 1_000_000))
def test_rates_in_thousandths_are_kept(milli: int) -> None:
    assert rate_milli(milli / 1000) == milli


def test_a_rate_is_never_zero() -> None:
    assert rate_milli(0.0001) == 1


@pytest.mark.parametrize(
    ("wait_ms", "seconds"), [(0, 1), (1, 1), (999, 1), (1000, 1), (1001, 2), (62_500, 63)]
)
def test_retry_after_is_whole_seconds_and_never_early(wait_ms: int, seconds: int) -> None:
    assert retry_after_s(wait_ms) == seconds


def limit(prefix: str, **changes: object) -> RateLimit:
    return RateLimit(**{"prefix": prefix, "rps": 1.0, "burst": 0, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", "/"),
        ("/v1", "/"),
        ("/v1/", "/v1/"),
        ("/v1/models", "/v1/"),
        ("/v1/chat/completions", "/v1/chat"),
        ("/v1/chatter", "/v1/chat"),
        ("/V1/chat", "/"),
    ],
)
def test_the_longest_prefix_covers_a_path(path: str, expected: str) -> None:
    rules = compile_limits("main/llama", [limit("/v1/"), limit("/"), limit("/v1/chat")])
    rule = longest_prefix(rules, path)
    assert rule is not None
    assert rule.prefix == expected


def test_a_path_without_a_rule_is_not_limited() -> None:
    rules = compile_limits("main/llama", [limit("/v1/")])
    assert longest_prefix(rules, "/health") is None
    assert longest_prefix((), "/") is None


@given(st.lists(st.text("/ab", max_size=4), unique=True), st.text("/ab", max_size=6))
def test_the_longest_prefix_is_the_longest(prefixes: list[str], path: str) -> None:
    rule = longest_prefix(compile_limits("main/llama", map(limit, prefixes)), path)
    fitting = [prefix for prefix in prefixes if path.startswith(prefix)]
    assert (rule.prefix if rule else None) == max(fitting, key=len, default=None)


def test_a_rule_keeps_what_it_was_told() -> None:
    (rule,) = compile_limits("main/llama", [limit("/", rps=2.5, burst=4, header="x-key")])
    assert (rule.rate, rule.burst, rule.header) == (2500, 4, "x-key")


def test_each_service_prefix_and_value_has_its_own_bucket() -> None:
    rules: list[Rule] = [
        rule
        for service in ("main/llama", "main/llama2", "other/llama")
        for rule in compile_limits(service, [limit("/"), limit("/v1/")])
    ]
    keys = {rule.key(value) for rule in rules for value in (b"10.0.0.1", b"10.0.0.11", b"a")}
    assert len(keys) == len(rules) * 3
    assert {len(key) for key in keys} == {16}


def test_a_bucket_keeps_its_name_when_a_rule_changes() -> None:
    before, after = (compile_limits("main/llama", [limit("/", burst=burst)]) for burst in (1, 9))
    assert before[0].key(b"10.0.0.1") == after[0].key(b"10.0.0.1")
