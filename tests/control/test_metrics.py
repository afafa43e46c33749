"""The text of /metrics: names and labels that dashboards rely on, valid for Prometheus."""

from __future__ import annotations

import asyncio
import re
import subprocess
from dataclasses import replace

import pytest

from gatewayd.control.metrics import Exposition
from gatewayd.control.sample import RouterSample, Sample, ServiceSample
from gatewayd.core.messages import ServiceTotals
from gatewayd.core.stats import DURATION_BOUNDS, TTFB_BOUNDS

COUNTED = ServiceTotals(
    codes={200: 7, 503: 1},
    duration_buckets=[1, 2, *[0] * (len(DURATION_BOUNDS) - 2), 5],
    duration_sum=12.5,
    ttfb_buckets=[4, *[0] * len(TTFB_BOUNDS)],
    ttfb_sum=0.01,
    bytes_in=100,
    bytes_out=2000,
    rejections={"rate_limit": 3},
    upstream_errors={("a", "refused"): 2},
    retries=2,
    ways={"direct": 6, "fallback": 1, "-": 1},
    steering={"steered": 3, "timeout": 1},
)
SAMPLE = Sample(
    services=[
        ServiceSample("", ServiceTotals(codes={404: 1})),
        ServiceSample(
            "llama",
            COUNTED,
            in_flight=[("a", 3), ("b", 0)],
            replicas={"up": 1, "draining": 1},
            router=RouterSample(up=True, restarts=2),
        ),
    ],
    workers=2,
    worker_restarts=1,
    connections=17,
    log_lines_dropped=5,
    reloads={"success": 4, "failure": 1},
    certificates={"*.a.org": 1800000000.0},
)


async def rendered(sample: Sample = SAMPLE) -> str:
    return (await Exposition(lambda: sample).render()).decode()


def value(text: str, series: str) -> float:
    name, _, labels = series.partition("{")
    wanted = set(re.findall(r'(\w+="[^"]*")', labels))
    for line in text.splitlines():
        found = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
        if (
            found
            and found[1] == name
            and set(re.findall(r'(\w+="[^"]*")', found[2] or "")) == wanted
        ):
            return float(found[3])
    raise AssertionError(f"{series} is not in\n{text}")


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        ('gatewayd_requests_total{service="llama",code="200"}', 7),
        ('gatewayd_requests_total{service="",code="404"}', 1),
        ('gatewayd_request_duration_seconds_bucket{service="llama",le="0.005"}', 1),
        ('gatewayd_request_duration_seconds_bucket{service="llama",le="0.01"}', 3),
        ('gatewayd_request_duration_seconds_bucket{service="llama",le="3600.0"}', 3),
        ('gatewayd_request_duration_seconds_bucket{service="llama",le="+Inf"}', 8),
        ('gatewayd_request_duration_seconds_count{service="llama"}', 8),
        ('gatewayd_request_duration_seconds_sum{service="llama"}', 12.5),
        ('gatewayd_time_to_first_byte_seconds_bucket{service="llama",le="0.005"}', 4),
        ('gatewayd_time_to_first_byte_seconds_bucket{service="llama",le="600.0"}', 4),
        ('gatewayd_requests_in_flight{service="llama",replica="a"}', 3),
        ('gatewayd_requests_in_flight{service="llama",replica="b"}', 0),
        ('gatewayd_request_bytes_total{service="llama"}', 100),
        ('gatewayd_response_bytes_total{service="llama"}', 2000),
        ('gatewayd_rejections_total{service="llama",reason="rate_limit"}', 3),
        ('gatewayd_upstream_errors_total{service="llama",replica="a",kind="refused"}', 2),
        ('gatewayd_retries_total{service="llama"}', 2),
        ('gatewayd_certificate_expiry_timestamp_seconds{domain="*.a.org"}', 1800000000),
        ('gatewayd_router_fallbacks_total{service="llama"}', 1),
        ('gatewayd_router_fallbacks_total{service=""}', 0),
        ('gatewayd_requests_by_way_total{service="llama",way="fallback"}', 1),
        ('gatewayd_requests_by_way_total{service="llama",way="none"}', 1),
        ('gatewayd_steering_total{service="llama",outcome="timeout"}', 1),
        ('gatewayd_replicas{service="llama",state="up"}', 1),
        ('gatewayd_replicas{service="llama",state="draining"}', 1),
        ('gatewayd_replicas{service="llama",state="unreachable"}', 0),
        ('gatewayd_router_up{service="llama"}', 1),
        ('gatewayd_router_restarts_total{service="llama"}', 2),
        ("gatewayd_workers", 2),
        ("gatewayd_worker_restarts_total", 1),
        ("gatewayd_connections", 17),
        ("gatewayd_access_log_lines_dropped_total", 5),
        ('gatewayd_config_reloads_total{result="success"}', 4),
        ('gatewayd_config_reloads_total{result="failure"}', 1),
        ('gatewayd_build_info{version="0.1.0"}', 1),
    ],
)
async def test_each_series(series: str, expected: float) -> None:
    assert value(await rendered(), series) == expected


async def test_the_process_of_control_is_in_it() -> None:
    text = await rendered()
    assert value(text, "process_resident_memory_bytes") > 0
    assert value(text, "process_open_fds") > 0


async def test_a_service_without_requests_has_its_histograms() -> None:
    text = await rendered(replace(SAMPLE, services=[ServiceSample("new", ServiceTotals())]))
    assert value(text, 'gatewayd_request_duration_seconds_count{service="new"}') == 0


@pytest.mark.needs("promtool")
async def test_promtool_finds_nothing_to_say() -> None:
    text = await rendered()
    checked = await asyncio.to_thread(
        subprocess.run,
        ["promtool", "check", "metrics"],
        input=text,
        text=True,
        capture_output=True,
        timeout=30,
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


async def test_many_asking_at_once_are_answered() -> None:
    exposition = Exposition(lambda: SAMPLE)
    texts = await asyncio.gather(*(exposition.render() for _ in range(10)))
    own = [[line for line in text.splitlines() if b"gatewayd_" in line] for text in texts]
    assert own[0]
    assert own == [own[0]] * 10
