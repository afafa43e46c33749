"""The whole way with a router, against the chain of three hops that it replaces.

Owns: chat completions/s, CPU per streamed event of all hops, time to the first byte.
Does not own: how the chains are built (chain_proxy, gateway_proxy).
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.bench import Bench, Proxy, Shape, ask_json
from benchmarks.figures.sse import RATE, measure
from benchmarks.load import CHAT, CHAT_ONE_TOKEN, CHAT_STREAM, client, unmarked, wrk
from benchmarks.processes import BenchError
from benchmarks.report import Bound, Figure, Line, Samples

_PATH = "/v1/chat/completions"
_FIRST_BYTES = 60
# A decision of the router has not been seen cheaper than this; less means that it was not asked.
_ROUTER_S = 20e-6


def _small(bench: Bench, proxy: Proxy, samples: Samples, warming: bool) -> None:
    meter = proxy.meter()
    seconds = 1 if warming else bench.settings.seconds
    result = wrk(
        bench, proxy, _PATH, method="POST", body=CHAT, seconds=seconds,
        Content_Type="application/json",
    )  # fmt: skip
    cost = meter.read()
    if cost.by_role["router"] < result.requests * _ROUTER_S:
        raise BenchError(f"{proxy.name}: the router took no part")
    if not warming:
        samples.add("chain-rps", proxy.name, result.rps)
        samples.add("chain-request-cpu", proxy.name, cost.cpu_s / result.requests * 1e6)


def _events(bench: Bench, proxy: Proxy, samples: Samples, warming: bool) -> None:
    seconds = 1 if warming else bench.settings.seconds
    seen, cost = measure(bench, proxy, _PATH, rate=RATE, seconds=seconds, body=CHAT_STREAM)
    if not warming:
        router = cost["router"] / seen["events"] * 1e6
        whole = sum(cost.values()) / seen["events"] * 1e6
        samples.add("chain-event-cpu", proxy.name, whole)
        samples.add("chain-event-own", proxy.name, whole - router)
        samples.add("chain-event-router", proxy.name, router)
        samples.add("chain-event-p50", proxy.name, seen["p50_ms"])


def _first_byte(bench: Bench, where: Proxy | Path) -> float:
    # Straight to the replica without the marker, or it would count as gone past a router.
    body = CHAT_ONE_TOKEN if isinstance(where, Proxy) else unmarked(CHAT_ONE_TOKEN)
    with client(bench, "first_byte_client", where, _PATH, body=body) as process:
        process.say("measure 5")
        process.hear(20.0)
        process.say(f"measure {_FIRST_BYTES}")
        return float(process.hear(60.0)["p50_ms"])


def _run(bench: Bench, samples: Samples) -> None:
    def once(proxy: Proxy, warming: bool) -> None:
        _small(bench, proxy, samples, warming)
        _events(bench, proxy, samples, warming)
        if not warming:
            added = _first_byte(bench, proxy) - _first_byte(bench, path)
            samples.add("chain-first-byte", proxy.name, added)

    with bench.replica(rate=RATE) as path, bench.proxies(Shape((path,), router=True)) as proxies:
        # Before its router knew the replica, the gateway has rightly gone past it.
        before = ask_json(path, "/stats")["past_router"]
        bench.in_turn(proxies, once)
        counts = ask_json(path, "/stats")
    if bench.settings.router_mode == "through" and counts["past_router"] != before:
        raise BenchError(f"requests went past the router: {before} before, {counts} after")
    samples.notes["chain-event-cpu"] = "all hops, the router and control included"


FIGURES = (
    Figure(
        "chain",
        (
            Line("chain-rps", "chain, small chat completion", "requests/s", Bound(">=", 0.9)),
            Line("chain-request-cpu", "chain, CPU of that, all hops", "µs/request"),
            Line("chain-event-cpu", "chain, CPU per SSE event", "µs/event", Bound("<=", 1.05)),
            Line("chain-event-own", "— without the router's", "µs/event"),
            Line("chain-event-router", "— the router's", "µs/event"),
            Line("chain-event-p50", "chain, latency of an event p50", "ms"),
            Line("chain-first-byte", "chain, added time to first byte p50", "ms"),
        ),
        _run,
    ),
)
