"""HTTPS: event streams, handshakes, memory of what is open.

Owns: the same as the figures without it, over TLS. Does not own: the streams (figures.sse), what
is open (figures.memory), handshakes (handshake_client).
"""

from __future__ import annotations

from functools import partial

from benchmarks.bench import Bench, Proxy, Shape, used
from benchmarks.figures import memory, sse
from benchmarks.load import client
from benchmarks.report import Bound, Figure, Line, Samples

_HANDSHAKES_A_SECOND = 300  # what the client makes of them, about


def _streams(bench: Bench, samples: Samples) -> None:
    def once(proxy: Proxy, warming: bool) -> None:
        window = 1 if warming else bench.settings.seconds
        path = f"/sse?rate={sse.RATE}"
        seen, cost = sse.measure(bench, proxy, path, rate=sse.RATE, seconds=window, tls=True)
        if not warming:
            samples.add("tls-sse-cpu", proxy.name, sum(cost.values()) / seen["events"] * 1e6)

    with bench.replica() as path_, bench.proxies(Shape((path_,), tls=True)) as proxies:
        bench.in_turn(proxies, once)


def _handshakes(bench: Bench, samples: Samples) -> None:
    def once(proxy: Proxy, warming: bool) -> None:
        count = _HANDSHAKES_A_SECOND * (1 if warming else bench.settings.seconds)
        with client(bench, "handshake_client", proxy, "/", tls=True) as process:
            meter = proxy.meter()
            process.say(f"measure {count}")
            process.hear(60.0)
            cost = meter.read()
        if not warming:
            samples.add("tls-handshake-cpu", proxy.name, used(cost, count, "handshakes"))

    with bench.replica() as path, bench.proxies(Shape((path,), tls=True)) as proxies:
        bench.in_turn(proxies, once)


FIGURES = (
    Figure(
        "tls-sse",
        (Line("tls-sse-cpu", "SSE relay over TLS, CPU", "µs/event", Bound("<=", 1.15)),),
        _streams,
    ),
    Figure(
        "tls-handshake",
        (
            Line(
                "tls-handshake-cpu",
                "full TLS 1.3 handshake (ECDSA P-256), CPU",
                "µs",
                Bound("<=", 1.5),
            ),
        ),
        _handshakes,
    ),
    Figure(
        "tls-memory",
        (Line("tls-stream-memory", "memory of an open stream over TLS", "KiB", Bound("<=", 2.0)),),
        partial(memory.run, "stream", tls=True),
    ),
)
