"""Memory of what is open: event streams, and idle connections.

Owns: growth of resident memory per open thing, on freshly started proxies.
Does not own: how they are opened (sse_client, hold_client).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from benchmarks.bench import Bench, Proxy, Shape
from benchmarks.load import client
from benchmarks.report import Bound, Figure, Line, Samples

_WARM_UP = 20


@contextmanager
def opened(
    bench: Bench, proxy: Proxy, kind: str, count: int, *, tls: bool = False
) -> Iterator[None]:
    """Opened, used and settled; still whole at the end of the block."""
    if kind == "stream":
        script, path, option, check = "sse_client", "/sse?rate=2", "--streams", "measure 1.5"
    else:
        script, path, option, check = "hold_client", "/small", "--connections", "check"
    with client(bench, script, proxy, path, option, str(count), tls=tls) as process:
        process.say(check)
        process.hear(10.0)
        yield
        process.require_alive()


def run(kind: str, bench: Bench, samples: Samples, *, tls: bool = False) -> None:
    name = f"tls-{kind}-memory" if tls else f"{kind}-memory"
    settings = bench.settings
    count = settings.open_streams if kind == "stream" else settings.idle_connections

    def once(fresh: Proxy, warming: bool) -> None:
        if warming:
            return
        # A new process each time: what one round has allocated, the next would have for nothing.
        index = [proxy.name for proxy in proxies].index(fresh.name)
        with bench.running(bench.build(shape)[index]) as proxy:
            with opened(bench, proxy, kind, _WARM_UP, tls=tls):
                pass
            before = proxy.carriers_kib()
            with opened(bench, proxy, kind, count, tls=tls):
                grown = proxy.carriers_kib() - before
            samples.add(name, proxy.name, grown / count)

    with bench.replica() as path:
        shape = Shape((path,), tls=tls)
        proxies = bench.build(shape)
        bench.in_turn(proxies, once)
    samples.notes[name] = f"{count} open at once, growth of resident memory"


FIGURES = (
    Figure(
        "stream-memory",
        (Line("stream-memory", "memory of an open stream", "KiB", Bound("<=", 1.0)),),
        partial(run, "stream"),
    ),
    Figure(
        "idle-memory",
        (
            Line(
                "idle-memory",
                "memory of an idle connection",
                "KiB",
                Bound("<=", 30.0, of="value"),
            ),
        ),
        partial(run, "idle"),
    ),
)
