"""Small requests by wrk: GET, POST, and a new client connection for each.

Owns: requests/s at full load and CPU per request. Does not own: the load (load.wrk).
"""

from __future__ import annotations

from functools import partial

from benchmarks.bench import Bench, Proxy, Shape, used
from benchmarks.load import wrk
from benchmarks.report import Bound, Figure, Line, Samples

_BODY_BYTES = 4096


def _run(
    key: str, path: str, method: str, body: bytes, close: bool, bench: Bench, samples: Samples
) -> None:
    headers = {"Connection": "close"} if close else {}
    if body:
        headers["Content_Type"] = "application/json"

    def once(proxy: Proxy, warming: bool) -> None:
        seconds = 1 if warming else bench.settings.seconds
        meter = proxy.meter()
        result = wrk(bench, proxy, path, method=method, body=body, seconds=seconds, **headers)
        cost = meter.read()
        if warming:
            return
        samples.add(f"{key}-cpu", proxy.name, used(cost, result.requests, "requests"))
        samples.add(f"{key}-rps", proxy.name, result.rps)
        samples.add(f"{key}-p50", proxy.name, result.p50_ms)
        samples.busy.setdefault(proxy.name, []).append(cost.cpu_s / cost.wall_s)
        idle = sum(spent for role, spent in cost.by_role.items() if role in proxy.IDLE)
        aside[proxy.name] = idle / result.requests * 1e6

    aside: dict[str, float] = {}
    with bench.replica() as path_, bench.proxies(Shape((path_,))) as proxies:
        bench.in_turn(proxies, once)
    samples.judge_throughput(f"{key}-rps", bounded=key == "get")
    parts = ", ".join(f"{name} {part:.1f} µs" for name, part in aside.items())
    samples.notes[f"{key}-cpu"] = f"of it by control or master: {parts}"


def _figure(
    key: str,
    title: str,
    cpu: Bound,
    rps: Bound | None,
    *,
    path: str = "/small",
    body: bytes = b"",
    close: bool = False,
) -> Figure:
    lines = (
        Line(f"{key}-cpu", f"{title}, CPU", "µs/request", cpu),
        Line(f"{key}-rps", f"{title}, throughput", "requests/s", rps),
        Line(f"{key}-p50", f"{title}, latency p50 under that load", "ms"),
    )
    method = "POST" if body else "GET"
    return Figure(key, lines, partial(_run, key, path, method, body, close))


FIGURES = (
    _figure("get", "small GET", Bound("<=", 2.0), Bound(">=", 0.5)),
    _figure(
        "post",
        "POST 4 KiB for 2 KiB",
        Bound("<=", 2.0),
        None,
        path="/echo",
        body=b'{"fill":"' + b"x" * (_BODY_BYTES - 11) + b'"}',
    ),
    _figure("connect", "new connection per request", Bound("<=", 4.0), None, close=True),
)
