"""Not about load: how soon it serves, what it costs to stand there, how soon a change is true.

Owns: start, idle CPU, memory at the start, visibility of replica changes on every worker.
Does not own: how the admin API is shaped (its paths are the registry's).

Nothing is pinned here: a start and a change are what an operator waits for on the whole machine.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.bench import Bench, Proxy, Shape, accepts, ask
from benchmarks.gateway_proxy import PROJECT, SERVICE, GatewayProxy
from benchmarks.processes import BenchError, memory_kib
from benchmarks.report import SUBJECT, Bound, Figure, Line, Samples

_IDLE_S = 10.0
_MB = 1e6 / 1024  # in KiB
_CHANGES = 20
_WATCHERS = 16  # connections; the kernel spreads them over the workers' sockets
_PAUSE_S = 0.005


def _start_once(bench: Bench, proxy: Proxy, samples: Samples) -> None:
    proxy.start()
    process = proxy.process
    assert process is not None
    while not accepts(proxy.port):
        process.require_alive()
        if time.monotonic() - process.started > 20:
            raise BenchError(f"{proxy.name} does not listen: {process.last_words()}")
        time.sleep(0.001)
    accepted = time.monotonic() - process.started
    status, _ = ask(proxy.port, "GET", "/small", headers=bench.headers(), timeout=20.0)
    answered = time.monotonic() - process.started
    if status != 200:
        raise BenchError(f"{proxy.name}'s first answer was {status}")
    proxy.wait_ready()
    roles = proxy.roles()
    samples.add("start", proxy.name, answered)
    samples.add("start-accept", proxy.name, accepted)
    samples.add("worker-memory", proxy.name, max(memory_kib(p) for p in roles["worker"]) / _MB)
    everyone = [pid for pids in roles.values() for pid in pids]
    samples.add("tree-memory", proxy.name, sum(memory_kib(p, "Pss") for p in everyone) / _MB)


def _start(bench: Bench, samples: Samples) -> None:
    with bench.replica() as path:
        for number in range(bench.settings.rounds + 1):
            for proxy in bench.build(Shape((path,), pinned=False)):
                try:
                    # The first start reads files that later ones find in memory.
                    _start_once(bench, proxy, samples if number else Samples())
                finally:
                    proxy.stop()


def _idle(bench: Bench, samples: Samples) -> None:
    with bench.replica() as path, bench.proxies(Shape((path,), pinned=False)) as proxies:
        for proxy in proxies:
            status, _ = ask(proxy.port, "GET", "/small", headers=bench.headers())
            if status != 200:
                raise BenchError(f"{proxy.name} answered {status}")
        meters = [proxy.meter() for proxy in proxies]
        time.sleep(_IDLE_S)
        for proxy, meter in zip(proxies, meters, strict=True):
            cost = meter.read()
            samples.add("idle-cpu", proxy.name, cost.cpu_s / cost.wall_s * 100)
            if proxy.name == SUBJECT:
                parts = ", ".join(f"{role} {s:.2f} s" for role, s in cost.by_role.items())
                samples.notes["idle-cpu"] = f"over {cost.wall_s:.0f} s: {parts}"


# --- replica changes -----------------------------------------------------------------------------


@dataclass
class _Change:
    """A change under way, as the watchers see it."""

    expected: int  # status of requests once it is visible
    begun: float
    answered: float = float("inf")  # when the admin call had answered
    seen: dict[int, float] = field(default_factory=dict)  # watcher -> when it first saw it
    broken: str = ""
    all_seen: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self, watcher: int, sent: float, status: int) -> None:
        if status == self.expected:
            self.seen.setdefault(watcher, time.monotonic())
            if len(self.seen) == _WATCHERS:
                self.all_seen.set()
        elif sent > self.answered:
            self.broken = f"a request got {status} after the change was acknowledged"


class _Watch:
    """Requests that never stop, on connections that are kept."""

    def __init__(self, bench: Bench, port: int) -> None:
        lines = [f"{name}: {value}" for name, value in bench.headers().items()]
        self._request = "\r\n".join(["GET /small HTTP/1.1", *lines]).encode() + b"\r\n\r\n"
        self._port = port
        self.change: _Change | None = None

    async def run(self, number: int) -> None:
        while True:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            try:
                keep = True
                while keep:
                    keep = await self._once(number, reader, writer)
                    await asyncio.sleep(_PAUSE_S)
            except (asyncio.IncompleteReadError, ConnectionError) as error:
                raise BenchError(f"a watched connection broke: {error!r}") from error
            finally:
                writer.close()

    async def _once(
        self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """One request; whether the connection may carry another."""
        sent = time.monotonic()
        writer.write(self._request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = next(
            int(line.partition(b":")[2])
            for line in head.split(b"\r\n")
            if line.startswith(b"content-length:")
        )
        await reader.readexactly(length)
        status = int(head.split(b" ", 2)[1])
        if status not in (200, 503):
            raise BenchError(f"a watched request got {status}")
        if self.change is not None:
            self.change.note(number, sent, status)
        return b"connection: close" not in head


async def _changes(bench: Bench, proxy: GatewayProxy, socket: Path, samples: Samples) -> None:
    base = f"/api/registry/{PROJECT}/services/{SERVICE}/replicas"
    watch = _Watch(bench, proxy.port)
    took: list[float] = []

    async def change(path: str, content: dict[str, str], expected: int) -> None:
        now = watch.change = _Change(expected, time.monotonic())
        status, body = await asyncio.to_thread(
            ask,
            proxy.admin,
            "POST",
            path,
            headers={"Content-Type": "application/json"},
            body=json.dumps(content).encode(),
        )
        now.answered = time.monotonic()
        if status != 200:
            raise BenchError(f"POST {path} answered {status}: {body[:200]!r}")
        async with asyncio.timeout(5.0):
            await now.all_seen.wait()
        await asyncio.sleep(0.05)  # long enough for a late worker to be found out
        if now.broken:
            raise BenchError(now.broken)
        took.append(now.answered - now.begun)
        samples.add("replica-change", proxy.name, (max(now.seen.values()) - now.begun) * 1e3)

    async def all_changes() -> None:
        for number in range(_CHANGES // 2):
            name = f"r{number}"
            await change(f"{base}/register", {"job_id": name, "socket": str(socket)}, 200)
            await change(f"{base}/{name}/unregister", {}, 503)

    watchers = [asyncio.ensure_future(watch.run(number)) for number in range(_WATCHERS)]
    script = asyncio.ensure_future(all_changes())
    try:
        await asyncio.wait({script, *watchers}, return_when=asyncio.FIRST_COMPLETED)
        for task in (script, *watchers):
            if task.done():
                task.result()
    except TimeoutError:
        raise BenchError("a change was not seen on every connection within 5 s") from None
    finally:
        for task in (script, *watchers):
            task.cancel()
        await asyncio.gather(script, *watchers, return_exceptions=True)
    values = samples.values["replica-change"][proxy.name]
    samples.notes["replica-change"] = (
        f"worst of {len(values)}; median {statistics.median(values):.1f} ms, of the admin call "
        f"alone {statistics.median(took) * 1e3:.1f} ms; 2 workers, watched on {_WATCHERS} "
        f"connections every {_PAUSE_S * 1e3:.0f} ms"
    )


def _replica_change(bench: Bench, samples: Samples) -> None:
    with bench.replica() as path:
        proxy = bench.build(Shape((), pinned=False, workers=2))[0]
        if not isinstance(proxy, GatewayProxy):
            raise BenchError("the stand-in has no admin API")
        with bench.running(proxy):
            asyncio.run(_changes(bench, proxy, path, samples))


FIGURES = (
    Figure(
        "start",
        (
            Line("start", "start to the first answer", "s", Bound("<=", 1.0, of="value")),
            Line("start-accept", "start to the first accepted connection", "s"),
            Line("worker-memory", "RSS of a worker at start", "MB", Bound("<=", 60.0, of="value")),
            Line("tree-memory", "PSS of all processes at start", "MB"),
        ),
        _start,
    ),
    Figure(
        "idle-cpu",
        (Line("idle-cpu", "idle CPU of all processes", "%", Bound("<=", 1.0, of="value")),),
        _idle,
    ),
    Figure(
        "replica-change",
        (
            Line(
                "replica-change",
                "replica change visible on all workers",
                "ms",
                Bound("<=", 100.0, of="value", worst=True),
            ),
        ),
        _replica_change,
    ),
)
