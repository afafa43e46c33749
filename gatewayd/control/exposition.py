"""The gateway's metrics in Prometheus' text format, version 0.0.4.

Owns: names, labels, help, lines. Does not own: the values (control.sample), when lines are made
(control.metrics). Names and labels are an interface: docs/operations.md lists them.

The client library makes an object of each line, with a dictionary of its labels, before it formats
it: 175 ms of a core for 500 services. Of families that are known beforehand the lines are strings
at once, for a twelfth of that.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal

import gatewayd
from gatewayd.control.sample import REPLICA_STATES, Sample, ServiceSample
from gatewayd.core.stats import DURATION_BOUNDS, TTFB_BOUNDS


class Family:
    """All lines of one name stand together, below its help and type."""

    __slots__ = ("head", "name")

    def __init__(
        self, kind: Literal["counter", "gauge", "histogram"], name: str, text: str
    ) -> None:
        self.name = name
        self.head = f"# HELP {name} {text}\n# TYPE {name} {kind}\n"

    def __repr__(self) -> str:
        return f"<Family {self.name}>"

    def line(self, labels: str, value: float) -> str:
        return f"{self.name}{{{labels}}} {value}\n"

    def bare(self, value: float) -> str:
        return f"{self.name} {value}\n"


class Histogram(Family):
    __slots__ = ("_heads", "_zeros")

    def __init__(self, name: str, text: str, bounds: Sequence[float]) -> None:
        super().__init__("histogram", name, text)
        labels = (*(repr(float(bound)) for bound in bounds), "+Inf")
        self._heads = tuple(f'{name}_bucket{{le="{bound}",' for bound in labels)
        self._zeros = (0,) * len(labels)

    def lines(self, labels: str, counts: Sequence[int], total: float) -> Iterable[str]:
        """`counts` of each bucket alone, +Inf last; none at all means zeros."""
        cumulative = 0
        for head, count in zip(self._heads, counts or self._zeros, strict=True):
            cumulative += count
            yield f"{head}{labels}}} {cumulative}\n"
        yield f"{self.name}_count{{{labels}}} {cumulative}\n{self.name}_sum{{{labels}}} {total}\n"


REQUESTS: Final = Family("counter", "gatewayd_requests_total", "Requests answered.")
DURATION: Final = Histogram(
    "gatewayd_request_duration_seconds",
    "From the request's head to the last byte of the answer.",
    DURATION_BOUNDS,
)
TTFB: Final = Histogram(
    "gatewayd_time_to_first_byte_seconds",
    "From the request's head to the first byte of the answer's body.",
    TTFB_BOUNDS,
)
RECEIVED: Final = Family(
    "counter", "gatewayd_request_bytes_total", "Bytes of request bodies received."
)
SENT: Final = Family("counter", "gatewayd_response_bytes_total", "Bytes of response bodies sent.")
REJECTIONS: Final = Family(
    "counter", "gatewayd_rejections_total", "Requests that the gateway refused itself."
)
STALE: Final = Family(
    "counter",
    "gatewayd_auth_stale_total",
    "Requests let through by what an authority had said before, while it does not answer.",
)
ERRORS: Final = Family(
    "counter", "gatewayd_upstream_errors_total", "Attempts that failed at a replica."
)
RETRIES: Final = Family("counter", "gatewayd_retries_total", "Attempts beyond a request's first.")
FALLBACKS: Final = Family(
    "counter",
    "gatewayd_router_fallbacks_total",
    "Requests that went straight to a replica because the router could not serve them.",
)
WAYS: Final = Family(
    "counter",
    "gatewayd_requests_by_way_total",
    "Requests by the way they went: direct, through (the router carried them), steered (it "
    "only chose), fallback (past it), or none.",
)
STEERING: Final = Family(
    "counter",
    "gatewayd_steering_total",
    "Questions to a router where a request should go, by how they ended.",
)
IN_FLIGHT: Final = Family(
    "gauge", "gatewayd_requests_in_flight", "Requests that a replica is working on."
)
REPLICAS: Final = Family("gauge", "gatewayd_replicas", "Registered replicas by state.")
ROUTER_UP: Final = Family(
    "gauge",
    "gatewayd_router_up",
    "Whether requests go through the service's router (1) or past it (0).",
)
ROUTER_RESTARTS: Final = Family(
    "counter", "gatewayd_router_restarts_total", "Restarts of the service's router."
)
WORKERS: Final = Family("gauge", "gatewayd_workers", "Workers that serve.")
WORKER_RESTARTS: Final = Family(
    "counter", "gatewayd_worker_restarts_total", "Workers that were replaced."
)
CONNECTIONS: Final = Family("gauge", "gatewayd_connections", "Open client connections.")
DROPPED: Final = Family(
    "counter",
    "gatewayd_access_log_lines_dropped_total",
    "Access lines that were lost: nobody read them, or they could not be written.",
)
HELD: Final = Family(
    "counter",
    "gatewayd_handshakes_held_total",
    "Handshakes that waited for a certificate, by how that ended.",
)
RELOADS: Final = Family("counter", "gatewayd_config_reloads_total", "Reloads of the configuration.")
CERTIFICATES: Final = Family(
    "gauge",
    "gatewayd_certificate_expiry_timestamp_seconds",
    "When the certificate that is served for a name expires.",
)
BUILD: Final = Family("gauge", "gatewayd_build_info", "Always 1.")

FAMILIES: Final = (
    *(REQUESTS, DURATION, TTFB, RECEIVED, SENT),
    *(REJECTIONS, STALE, ERRORS, RETRIES, FALLBACKS, WAYS, STEERING),
    *(IN_FLIGHT, REPLICAS, ROUTER_UP, ROUTER_RESTARTS),
    *(WORKERS, WORKER_RESTARTS, CONNECTIONS, DROPPED, HELD, RELOADS, CERTIFICATES, BUILD),
)

Lines = Mapping[Family, list[str]]  # of every family


def no_lines() -> Lines:
    return {family: [] for family in FAMILIES}


def add_service(lines: Lines, sample: ServiceSample) -> None:
    label = f'service="{_escaped(sample.name)}"'
    counted = sample.totals
    lines[REQUESTS].extend(
        REQUESTS.line(f'code="{code}",{label}', count)
        for code, count in sorted(counted.codes.items())
    )
    lines[DURATION].extend(DURATION.lines(label, counted.duration_buckets, counted.duration_sum))
    lines[TTFB].extend(TTFB.lines(label, counted.ttfb_buckets, counted.ttfb_sum))
    for family, value in (
        (RECEIVED, counted.bytes_in),
        (SENT, counted.bytes_out),
        (STALE, counted.auth_stale),
        (RETRIES, counted.retries),
        (FALLBACKS, counted.ways.get("fallback", 0)),
    ):
        lines[family].append(family.line(label, value))
    lines[REJECTIONS].extend(
        REJECTIONS.line(f'reason="{reason}",{label}', count)
        for reason, count in sorted(counted.rejections.items())
    )
    lines[ERRORS].extend(
        ERRORS.line(f'kind="{kind}",replica="{_escaped(replica)}",{label}', count)
        for (replica, kind), count in sorted(counted.upstream_errors.items())
    )
    lines[WAYS].extend(
        WAYS.line(f'{label},way="{"none" if way == "-" else way}"', count)
        for way, count in sorted(counted.ways.items())
    )
    lines[STEERING].extend(
        STEERING.line(f'outcome="{outcome}",{label}', count)
        for outcome, count in sorted(counted.steering.items())
    )
    lines[IN_FLIGHT].extend(
        IN_FLIGHT.line(f'replica="{_escaped(replica)}",{label}', requests)
        for replica, requests in sample.in_flight
    )
    if (states := sample.replicas) is not None:
        lines[REPLICAS].extend(
            REPLICAS.line(f'{label},state="{state}"', states.get(state, 0))
            for state in REPLICA_STATES
        )
    if (router := sample.router) is not None:
        lines[ROUTER_UP].append(ROUTER_UP.line(label, int(router.up)))
        lines[ROUTER_RESTARTS].append(ROUTER_RESTARTS.line(label, router.restarts))


def add_gateway(lines: Lines, sample: Sample) -> None:
    """What belongs to no service."""
    lines[WORKERS].append(WORKERS.bare(sample.workers))
    lines[WORKER_RESTARTS].append(WORKER_RESTARTS.bare(sample.worker_restarts))
    lines[CONNECTIONS].append(CONNECTIONS.bare(sample.connections))
    lines[DROPPED].append(DROPPED.bare(sample.log_lines_dropped))
    lines[HELD].extend(
        HELD.line(f'outcome="{outcome}"', sample.handshakes_held.get(outcome, 0))
        for outcome in ("gone", "refused", "served")
    )
    lines[RELOADS].extend(
        RELOADS.line(f'result="{result}"', count)
        for result, count in sorted(sample.reloads.items())
    )
    lines[CERTIFICATES].extend(
        CERTIFICATES.line(f'domain="{_escaped(domain)}"', end)
        for domain, end in sorted(sample.certificates.items())
    )
    lines[BUILD].append(BUILD.line(f'version="{gatewayd.__version__}"', 1))


def _escaped(value: str) -> str:
    if "\\" in value or '"' in value or "\n" in value:
        return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return value
