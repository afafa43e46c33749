"""The whole way with a router, against the chain of three hops that it replaces.

Owns: chat completions/s, CPU per streamed event of all hops, time to the first byte; that the
router was asked for every request. Does not own: how the chains are built (chain_proxy,
gateway_proxy).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from benchmarks.bench import Bench, Proxy, Shape, ask_json
from benchmarks.figures.sse import RATE, measure
from benchmarks.gateway_proxy import GatewayProxy
from benchmarks.load import CHAT, CHAT_ONE_TOKEN, CHAT_STREAM, client, unmarked, wrk
from benchmarks.processes import BenchError
from benchmarks.report import Bound, Figure, Line, Samples

_PATH = "/v1/chat/completions"
_FIRST_BYTES = 60


def _small(key: str, bench: Bench, proxy: Proxy, samples: Samples, warming: bool) -> None:
    meter = proxy.meter()
    seconds = 1 if warming else bench.settings.seconds
    result = wrk(
        bench, proxy, _PATH, method="POST", body=CHAT, seconds=seconds,
        Content_Type="application/json",
    )  # fmt: skip
    cost = meter.read()
    if not warming:
        samples.add(f"{key}-rps", proxy.name, result.rps)
        samples.busy.setdefault(proxy.name, []).append(cost.cpu_s / cost.wall_s)
        samples.add(f"{key}-request-cpu", proxy.name, cost.cpu_s / result.requests * 1e6)


def _events(key: str, bench: Bench, proxy: Proxy, samples: Samples, warming: bool) -> None:
    seconds = 1 if warming else bench.settings.seconds
    seen, cost = measure(bench, proxy, _PATH, rate=RATE, seconds=seconds, body=CHAT_STREAM)
    if not warming:
        router = cost["router"] / seen["events"] * 1e6
        whole = sum(cost.values()) / seen["events"] * 1e6
        samples.add(f"{key}-event-cpu", proxy.name, whole)
        samples.add(f"{key}-event-own", proxy.name, whole - router)
        samples.add(f"{key}-event-router", proxy.name, router)
        samples.add(f"{key}-event-p50", proxy.name, seen["p50_ms"])


def _first_byte(bench: Bench, where: Proxy | Path) -> float:
    # Straight to the replica without the marker, or it would count as gone past a router.
    body = CHAT_ONE_TOKEN if isinstance(where, Proxy) else unmarked(CHAT_ONE_TOKEN)
    with client(bench, "first_byte_client", where, _PATH, body=body) as process:
        process.say("measure 5")
        process.hear(20.0)
        process.say(f"measure {_FIRST_BYTES}")
        return float(process.hear(60.0)["p50_ms"])


class _Asked:
    """Whether the router was asked for every request: by the gateway's own word, and, where all
    bytes should pass the router, by what arrives at the replica."""

    def __init__(self, replica: Path, proxies: list[Proxy]) -> None:
        self._replica = replica
        self._gateways = [proxy for proxy in proxies if isinstance(proxy, GatewayProxy)]
        self._past, self._fallbacks = self._count()

    def _count(self) -> tuple[int, float]:
        past = int(str(ask_json(self._replica, "/stats")["past_router"]))
        return past, sum(gateway.fallbacks() for gateway in self._gateways)

    def require(self, mode: str) -> str:
        past, fallbacks = self._count()
        if fallbacks != self._fallbacks:
            count = fallbacks - self._fallbacks
            raise BenchError(f"{count:.0f} requests went past the router as it could not serve")
        if past != self._past and (mode == "through" or not self._gateways):
            raise BenchError(f"{past - self._past} requests went past the router")
        way = "straight to the replica" if past != self._past else "through the router"
        return f"all hops, the router and control included; gatewayd's bytes went {way}"


def _run(key: str, mode: str, bench: Bench, samples: Samples) -> None:
    def once(proxy: Proxy, warming: bool) -> None:
        _small(key, bench, proxy, samples, warming)
        _events(key, bench, proxy, samples, warming)
        if not warming:
            added = _first_byte(bench, proxy) - _first_byte(bench, path)
            samples.add(f"{key}-first-byte", proxy.name, added)

    with bench.replica(rate=RATE) as path, bench.proxies(Shape((path,), router=mode)) as proxies:
        asked = _Asked(path, proxies)
        bench.in_turn(proxies, once)
        samples.notes[f"{key}-event-cpu"] = asked.require(mode)
    samples.judge_throughput(f"{key}-rps", bounded=True)


def _figure(key: str, title: str, mode: str) -> Figure:
    lines = (
        Line(f"{key}-rps", f"{title}, small chat completion", "requests/s", Bound(">=", 0.9)),
        Line(f"{key}-request-cpu", f"{title}, CPU of that, all hops", "µs/request"),
        Line(f"{key}-event-cpu", f"{title}, CPU per SSE event", "µs/event", Bound("<=", 1.05)),
        Line(f"{key}-event-own", "— without the router's", "µs/event"),
        Line(f"{key}-event-router", "— the router's", "µs/event"),
        Line(f"{key}-event-p50", f"{title}, latency of an event p50", "ms"),
        Line(f"{key}-first-byte", f"{title}, added time to first byte p50", "ms"),
    )
    return Figure(key, lines, partial(_run, key, mode))


FIGURES = (
    _figure("chain", "chain", "auto"),
    _figure("chain-through", "chain in mode through", "through"),
)
