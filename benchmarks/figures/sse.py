"""Event streams: CPU per event, and how much later an event arrives than without a proxy.

Owns: 200 streams of 50 events/s through each proxy and straight to the replica.
Does not own: the streams themselves (replica, sse_client).
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.bench import Bench, Proxy, Shape
from benchmarks.load import client
from benchmarks.processes import BenchError
from benchmarks.report import Bound, Figure, Line, Samples

RATE = 50
_PATH = f"/sse?rate={RATE}"


def measure(
    bench: Bench,
    where: Proxy | Path,
    path: str,
    *,
    rate: float,
    seconds: float,
    body: bytes = b"",
    tls: bool = False,
) -> tuple[dict[str, float], dict[str, float]]:
    """One window over freshly opened streams: what the client saw, CPU seconds by role."""
    streams = bench.settings.streams
    with client(
        bench, "sse_client", where, path, "--streams", str(streams), body=body, tls=tls
    ) as process:
        meter = where.meter() if isinstance(where, Proxy) else None
        process.say(f"measure {seconds}")
        seen = process.hear(seconds + 10)
        cost = meter.read().by_role if meter else {}
    expected = streams * rate * seen["seconds"]
    # On a busy machine the replica's timer is late; a proxy that keeps back half is at fault.
    if seen["events"] < 0.5 * expected:
        name = where.name if isinstance(where, Proxy) else "the replica itself"
        raise BenchError(f"{name} delivered {seen['events']} of {expected:.0f} events in time")
    return seen, dict(cost)


def _run(bench: Bench, samples: Samples) -> None:
    seconds = bench.settings.seconds
    direct: dict[str, float] = {}

    def once(proxy: Proxy, warming: bool) -> None:
        if proxy is proxies[0] and not warming:  # a direct one in every round
            direct.update(measure(bench, path, _PATH, rate=RATE, seconds=min(2, seconds))[0])
            samples.add("sse-direct", proxy.name, direct["p50_ms"])
        window = 1 if warming else seconds
        seen, cost = measure(bench, proxy, _PATH, rate=RATE, seconds=window)
        if warming:
            return
        carrying = {role: spent for role, spent in cost.items() if role not in proxy.IDLE}
        samples.add("sse-cpu", proxy.name, sum(cost.values()) / seen["events"] * 1e6)
        samples.add("sse-carriers", proxy.name, sum(carrying.values()) / seen["events"] * 1e6)
        samples.add("sse-p50", proxy.name, seen["p50_ms"] - direct["p50_ms"])
        samples.add("sse-p99", proxy.name, seen["p99_ms"] - direct["p99_ms"])

    with bench.replica() as path, bench.proxies(Shape((path,))) as proxies:
        bench.in_turn(proxies, once)


FIGURES = (
    Figure(
        "sse",
        (
            Line("sse-cpu", "SSE relay, CPU", "µs/event", Bound("<=", 1.1)),
            Line("sse-carriers", "— without control and master", "µs/event"),
            Line("sse-p50", "SSE, added latency p50", "ms"),
            Line("sse-p99", "SSE, added latency p99", "ms"),
            Line("sse-direct", "SSE, latency p50 without a proxy", "ms"),
        ),
        _run,
    ),
)
