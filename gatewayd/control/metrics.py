"""The gateway's state as Prometheus reads it.

Owns: names, labels, the text. Does not own: counting (proxy.observe), adding up
(control.telemetry). Names and labels are an interface: docs/operations.md lists them.

Rendering takes milliseconds for each thousand lines, so it happens in a thread, on values copied
in the event loop, and never in a worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

import gatewayd
from gatewayd.control.status import REPLICA_STATES, RouterSample, Sample
from gatewayd.core.messages import ServiceTotals
from gatewayd.core.stats import DURATION_BOUNDS, TTFB_BOUNDS

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class Exposition:
    """Renders at most one text at a time, however many ask."""

    def __init__(self, take_sample: Callable[[], Sample]) -> None:
        self._take_sample = take_sample
        self._collector = _GatewayCollector()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self._collector)
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._lock = asyncio.Lock()

    async def render(self) -> bytes:
        async with self._lock:
            self._collector.sample = self._take_sample()
            return await asyncio.to_thread(generate_latest, self._registry)


class _GatewayCollector(Collector):
    def __init__(self) -> None:
        self.sample: Sample | None = None

    def describe(self) -> Iterable[Metric]:
        return ()  # so that registering does not collect

    def collect(self) -> Iterator[Metric]:
        sample = self.sample
        if sample is None:
            return
        yield from _requests(sample.totals)
        yield from _trouble(sample.totals)
        yield from _replicas(sample)
        yield from _routers(sample.routers)
        yield from _processes(sample)


def _requests(totals: Mapping[str, ServiceTotals]) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "gatewayd_requests", "Requests answered.", labels=("service", "code")
    )
    duration = HistogramMetricFamily(
        "gatewayd_request_duration_seconds",
        "From the request's head to the last byte of the answer.",
        labels=("service",),
    )
    ttfb = HistogramMetricFamily(
        "gatewayd_time_to_first_byte_seconds",
        "From the request's head to the first byte of the answer's body.",
        labels=("service",),
    )
    received = CounterMetricFamily(
        "gatewayd_request_bytes", "Bytes of request bodies received.", labels=("service",)
    )
    sent = CounterMetricFamily(
        "gatewayd_response_bytes", "Bytes of response bodies sent.", labels=("service",)
    )
    for service, counted in totals.items():
        for code, count in sorted(counted.codes.items()):
            requests.add_metric((service, str(code)), count)
        _add_histogram(
            duration, service, DURATION_BOUNDS, counted.duration_buckets, counted.duration_sum
        )
        _add_histogram(ttfb, service, TTFB_BOUNDS, counted.ttfb_buckets, counted.ttfb_sum)
        received.add_metric((service,), counted.bytes_in)
        sent.add_metric((service,), counted.bytes_out)
    yield from (requests, duration, ttfb, received, sent)


def _add_histogram(
    family: HistogramMetricFamily,
    service: str,
    bounds: Sequence[float],
    counts: Sequence[int],
    total_s: float,
) -> None:
    cumulative = 0
    buckets: list[tuple[str, float]] = []
    labels = (*map(_le, bounds), "+Inf")
    for bound, count in zip(labels, counts or (0,) * len(labels), strict=True):
        cumulative += count
        buckets.append((bound, cumulative))
    family.add_metric((service,), buckets, total_s)


def _le(bound: float) -> str:
    return repr(float(bound))


def _trouble(totals: Mapping[str, ServiceTotals]) -> Iterator[Metric]:
    rejections = CounterMetricFamily(
        "gatewayd_rejections",
        "Requests that the gateway refused itself.",
        labels=("service", "reason"),
    )
    errors = CounterMetricFamily(
        "gatewayd_upstream_errors",
        "Attempts that failed at a replica.",
        labels=("service", "replica", "kind"),
    )
    retries = CounterMetricFamily(
        "gatewayd_retries", "Attempts beyond a request's first.", labels=("service",)
    )
    fallbacks = CounterMetricFamily(
        "gatewayd_router_fallbacks",
        "Requests that went straight to a replica because the router could not serve them.",
        labels=("service",),
    )
    ways = CounterMetricFamily(
        "gatewayd_requests_by_way",
        "Requests by the way they went: direct, through (the router carried them), steered (it "
        "only chose), fallback (past it), or none.",
        labels=("service", "way"),
    )
    steering = CounterMetricFamily(
        "gatewayd_steering",
        "Questions to a router where a request should go, by how they ended.",
        labels=("service", "outcome"),
    )
    stale = CounterMetricFamily(
        "gatewayd_auth_stale",
        "Requests let through by what an authority had said before, while it does not answer.",
        labels=("service",),
    )
    for service, counted in totals.items():
        stale.add_metric((service,), counted.auth_stale)
        for way, count in sorted(counted.ways.items()):
            ways.add_metric((service, "none" if way == "-" else way), count)
        for outcome, count in sorted(counted.steering.items()):
            steering.add_metric((service, outcome), count)
        for reason, count in sorted(counted.rejections.items()):
            rejections.add_metric((service, reason), count)
        for (replica, kind), count in sorted(counted.upstream_errors.items()):
            errors.add_metric((service, replica, kind), count)
        retries.add_metric((service,), counted.retries)
        fallbacks.add_metric((service,), counted.ways.get("fallback", 0))
    yield from (rejections, stale, errors, retries, fallbacks, ways, steering)


def _replicas(sample: Sample) -> Iterator[Metric]:
    in_flight = GaugeMetricFamily(
        "gatewayd_requests_in_flight",
        "Requests that a replica is working on.",
        labels=("service", "replica"),
    )
    for service, replica, requests in sample.in_flight:
        in_flight.add_metric((service, replica), requests)
    replicas = GaugeMetricFamily(
        "gatewayd_replicas", "Registered replicas by state.", labels=("service", "state")
    )
    for service, states in sample.replicas.items():
        for state in REPLICA_STATES:
            replicas.add_metric((service, state), states.get(state, 0))
    yield from (in_flight, replicas)


def _routers(routers: Mapping[str, RouterSample]) -> Iterator[Metric]:
    up = GaugeMetricFamily(
        "gatewayd_router_up",
        "Whether requests go through the service's router (1) or past it (0).",
        labels=("service",),
    )
    restarts = CounterMetricFamily(
        "gatewayd_router_restarts", "Restarts of the service's router.", labels=("service",)
    )
    for service, router in routers.items():
        up.add_metric((service,), float(router.up))
        restarts.add_metric((service,), router.restarts)
    yield from (up, restarts)


def _processes(sample: Sample) -> Iterator[Metric]:
    yield GaugeMetricFamily("gatewayd_workers", "Workers that serve.", value=sample.workers)
    yield CounterMetricFamily(
        "gatewayd_worker_restarts", "Workers that were replaced.", value=sample.worker_restarts
    )
    yield GaugeMetricFamily(
        "gatewayd_connections", "Open client connections.", value=sample.connections
    )
    yield CounterMetricFamily(
        "gatewayd_access_log_lines_dropped",
        "Access lines that were lost: nobody read them, or they could not be written.",
        value=sum(counted.log_lines_dropped for counted in sample.totals.values()),
    )
    reloads = CounterMetricFamily(
        "gatewayd_config_reloads", "Reloads of the configuration.", labels=("result",)
    )
    for result, count in sorted(sample.reloads.items()):
        reloads.add_metric((result,), count)
    yield reloads
    ends = GaugeMetricFamily(
        "gatewayd_certificate_expiry_timestamp_seconds",
        "When the certificate that is served for a name expires.",
        labels=("domain",),
    )
    for domain, end in sorted(sample.certificates.items()):
        ends.add_metric((domain,), end)
    yield ends
    build = GaugeMetricFamily("gatewayd_build_info", "Always 1.", labels=("version",))
    build.add_metric((gatewayd.__version__,), 1)
    yield build
