"""64 MiB down and up, nginx with buffers of 64 KiB.

Owns: CPU per transfer. Does not own: the client (body_client).
"""

from __future__ import annotations

from functools import partial

from benchmarks.bench import Bench, Proxy, Shape, used
from benchmarks.load import client
from benchmarks.replica_pages import BLOB_BYTES
from benchmarks.report import Bound, Figure, Line, Samples


def _run(key: str, path: str, options: tuple[str, ...], bench: Bench, samples: Samples) -> None:
    def once(proxy: Proxy, warming: bool) -> None:
        seconds = 0.5 if warming else max(1.0, bench.settings.seconds / 2)
        with client(bench, "body_client", proxy, path, *options) as process:
            meter = proxy.meter()
            process.say(f"measure {seconds}")
            seen = process.hear(60.0)
            cost = meter.read()
        if not warming:
            cpu = used(cost, seen["transfers"], "transfers") / 1e3
            samples.add(f"{key}-cpu", proxy.name, cpu)
            moved = seen["transfers"] * BLOB_BYTES / 1e9
            samples.add(f"{key}-rate", proxy.name, moved / seen["seconds"])

    with bench.replica() as socket, bench.proxies(Shape((socket,), large=True)) as proxies:
        bench.in_turn(proxies, once)


def _figure(key: str, path: str, *options: str) -> Figure:
    size = ("--size", str(BLOB_BYTES))
    lines = (
        Line(f"{key}-cpu", f"64 MiB {key}, CPU", "ms", Bound("<=", 1.1)),
        Line(f"{key}-rate", f"64 MiB {key}, throughput", "GB/s"),
    )
    return Figure(key, lines, partial(_run, key, path, (*size, *options)))


FIGURES = (_figure("download", "/blob"), _figure("upload", "/sink", "--up"))
