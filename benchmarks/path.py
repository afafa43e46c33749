"""Microseconds that a request costs in this code alone: no kernel, no load generator, no noise.

Owns: an edge as a worker composes it, between transports that only take bytes, in turns of a busy
loop. Does not own: what a gateway costs on a machine (run.py), single decisions (micro.py).

    python -m benchmarks.path [--only get,post,sse,connect] [--profile]

`--profile` shows which functions the time goes to. Under callgrind the figure is instructions, and
the same every time:

    valgrind --tool=callgrind python -m benchmarks.path --only get --count 20000
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import hashlib
import pstats
import sys
import time
from collections.abc import Callable
from typing import Any, Final, cast

import uvloop

from gatewayd.core.model import (
    Endpoint,
    Limits,
    Log,
    RateLimit,
    Replica,
    Service,
    Token,
    TokensAuth,
    UnixAddress,
    Upstream,
)
from gatewayd.core.snapshot import compile_snapshot
from gatewayd.net.buckets import SharedStore
from gatewayd.net.demand import DemandTable
from gatewayd.net.loads import LoadTable
from gatewayd.net.upstream import UpstreamConnection
from gatewayd.proxy.accesslog import AccessLog
from gatewayd.proxy.connection import ClientConnection
from gatewayd.proxy.handler import Edge
from gatewayd.proxy.plane import Plane
from gatewayd.proxy.process import collect_seldom
from gatewayd.proxy.server import EdgeServer

TOKEN: Final = "bench-token-0123456789abcdef"  # noqa: S105
HEAD: Final = (
    b"Host: bench.test\r\nAuthorization: Bearer bench-token-0123456789abcdef\r\n"
    b"User-Agent: path\r\nAccept: */*\r\n"
)
BODY: Final = b"x" * 4096
GET: Final = b"GET /small HTTP/1.1\r\n" + HEAD + b"\r\n"
POST: Final = (
    b"POST /echo HTTP/1.1\r\n" + HEAD + b"Content-Type: application/json\r\n"
    b"Content-Length: 4096\r\n\r\n" + BODY
)
FIELDS: Final = b"Server: bench\r\nContent-Type: application/json\r\n"
SMALL: Final = b"HTTP/1.1 200 OK\r\n" + FIELDS + b"Content-Length: 120\r\n\r\n" + b"y" * 120
ECHO: Final = b"HTTP/1.1 200 OK\r\n" + FIELDS + b"Content-Length: 2048\r\n\r\n" + b"y" * 2048
STREAM: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
EVENT: Final = b"data: " + b"z" * 190 + b"\n\n"
TURN: Final = 50  # requests that a busy loop reads in one turn
CHUNK: Final = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)


class Transport:
    """Takes everything at once."""

    def __init__(self) -> None:
        self.written = 0

    def write(self, data: bytes) -> None:
        self.written += len(data)

    def get_extra_info(self, name: str) -> Any:
        return ("127.0.0.1", 50000) if name == "peername" else None

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None: ...

    def close(self) -> None: ...


class Setting:
    """As the benchmarks' gateway: tokens checked, a rate limited, metrics and access log on."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        loads = LoadTable.attach(LoadTable.create(2).fd, 2, 0)
        buckets = SharedStore.attach(SharedStore.create().fd, alone=True)
        demand = DemandTable.attach(DemandTable.create(2).fd, 0)
        self.plane = Plane(loop, loads)
        log = AccessLog(Log(access="/dev/null"))
        self.edge = Edge(self.plane, Limits(), buckets, demand, log)
        self.server = EdgeServer(self.edge, self.plane)
        self.endpoint = Endpoint("a", UnixAddress("/nowhere"), 0, "a", 0.0)
        service = Service(
            "main",
            "bench",
            domains=("bench.test",),
            replicas=(Replica("a", UnixAddress("/nowhere")),),
            auth=True,
            rate_limits=(RateLimit("/", 1e6, 1_000_000),),
        )
        upstream = Upstream((self.endpoint,), service.balance)
        auth = TokensAuth((Token("b", hashlib.sha256(TOKEN.encode()).digest()),))
        self.edge.apply(compile_snapshot(1, [service], {service.key: upstream}, auth=auth))

    def failures(self) -> int:
        codes = self.edge.meters.of("main/bench").totals.codes
        return sum(codes.values()) - codes.get(200, 0)

    def upstream(self) -> UpstreamConnection:
        pool = self.plane.pool(self.endpoint)
        connection = UpstreamConnection(pool)
        connection.connection_made(cast(asyncio.Transport, Transport()))
        pool.put(connection)
        return connection


def clients(setting: Setting) -> list[ClientConnection]:
    connections = [setting.server() for _ in range(TURN)]
    for connection in connections:
        connection.connection_made(cast(asyncio.Transport, Transport()))
    return connections


def exchanges(*reads: bytes, answer: bytes) -> Callable[[Setting], Callable[[], None]]:
    """A turn in which requests arrive in these reads, and one in which they are answered."""

    def prepared(setting: Setting) -> Callable[[], None]:
        heard = [client.data_received for client in clients(setting)]
        answered = [setting.upstream().data_received for _ in heard]
        edge = setting.edge

        def turn(reads: tuple[bytes, ...]) -> None:
            for hear in heard:
                for read in reads:
                    hear(read)
            edge.arrivals.run()
            edge.outbox.flush()
            for hear in answered:
                hear(answer)
            edge.outbox.flush()
            edge.records.flush()

        turn((b"".join(reads),))  # whole, and its head is known from then on
        return lambda: turn(reads)

    return prepared


def events(setting: Setting) -> Callable[[], None]:
    """Of one stream."""
    upstream = setting.upstream()
    client = clients(setting)[0]
    client.data_received(GET)
    upstream.data_received(STREAM)

    def turn() -> None:
        for _ in range(TURN):
            upstream.data_received(CHUNK)

    return turn


def connects(setting: Setting) -> Callable[[], None]:
    """Each request on a connection of its own."""
    answered = [setting.upstream().data_received for _ in range(TURN)]
    edge = setting.edge
    request = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")

    def turn() -> None:
        connections = clients(setting)
        for client in connections:
            client.data_received(request)
        edge.outbox.flush()
        for hear in answered:
            hear(SMALL)
        edge.outbox.flush()
        for client in connections:
            client.connection_lost(None)
        edge.records.flush()

    return turn


FIGURES: Final = {
    "get": exchanges(GET, answer=SMALL),
    "post": exchanges(POST, answer=ECHO),
    # As the clients of Python send it.
    "post-in-two": exchanges(POST[: -len(BODY)], BODY, answer=ECHO),
    "sse": events,
    "connect": connects,
}


async def measure(names: list[str], count: int, rounds: int, *, profile: bool) -> None:
    setting = Setting(asyncio.get_running_loop())
    turns = count // TURN
    for name in names:
        turn = FIGURES[name](setting)
        for _ in range(20):
            turn()
        assert setting.failures() == 0
        times = []
        for _ in range(rounds):
            await asyncio.sleep(0)
            collect_seldom()
            began = time.process_time()
            for _ in range(turns):
                turn()
            times.append((time.process_time() - began) / (turns * TURN) * 1e6)
        print(f"{name:8} {min(times):8.2f} us  (median {sorted(times)[len(times) // 2]:.2f})")
        if profile:
            profiler = cProfile.Profile()
            profiler.enable()
            for _ in range(turns):
                turn()
            profiler.disable()
            pstats.Stats(profiler).sort_stats("tottime").print_stats(60)
        await asyncio.sleep(0.3)  # the access log's thread empties its lines
    setting.edge.access_log.close()


def main() -> int:
    parser = argparse.ArgumentParser(description="a request without a kernel")
    parser.add_argument("--only", default=",".join(FIGURES))
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    names = [name for name in options.only.split(",") if name in FIGURES]
    if not names:
        parser.error(f"--only takes {', '.join(FIGURES)}")
    uvloop.run(measure(names, options.count, options.rounds, profile=options.profile))
    return 0


if __name__ == "__main__":
    sys.exit(main())
