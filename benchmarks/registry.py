"""What a registration costs with hundreds of services there, and a start with their state.

    python -m benchmarks.registry [--services 500] [--replicas 4] [--calls 40] [--workers 2]

A gateway of its own on loopback, its replicas one listening Unix socket under many names. Times are
seen from outside, as a control plane sees them. At the end registrations while /metrics is scraped,
and for how long control answers nobody: the longest of many calls of /healthz, one after the other.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from gatewayd.control.saved import Saved
from gatewayd.control.store import Store
from gatewayd.core.model import Cors, RateLimit, Replica, Service, UnixAddress
from gatewayd.core.secret import Secret

FILE = """
domain: example.com
listen: {{http: "unix:{home}/http.sock", admin: "unix:{home}/admin.sock"}}
workers: {workers}
state_dir: {home}/state
log: {{level: warning, access: "off"}}
"""
ADMIN, PUBLIC = "http://admin", "http://s0.example.com"
BASE = "/api/registry/main/services"
SCRAPE_EVERY_S, REGISTER_EVERY_S, ASK_EVERY_S = 0.5, 0.05, 0.002


def fill(home: Path, services: int, replicas: int) -> None:
    """The state that a gateway of such a size has saved."""
    found: dict[str, Service] = {}
    for i in range(services):
        addresses = [home / "r" / f"{i}-{j}.sock" for j in range(replicas)]
        for address in addresses:
            os.link(home / "replica.sock", address)
        service = Service(
            "main",
            f"s{i}",
            (f"s{i}.example.com",),
            model=f"m{i}",
            cors=Cors(),
            rate_limits=(RateLimit("/", 100.0, 100),),
            replicas=tuple(
                Replica(f"{i}-{j}", UnixAddress(str(address)), "api")
                for j, address in enumerate(addresses)
            ),
            id=f"{i:032x}",
            origin="api",
        )
        found[service.key] = service
    (home / "state").mkdir(mode=0o700)
    Store(home / "state").save(Saved(found, keys={"main": Secret("key")}))


async def answered(url: str, path: Path, process: asyncio.subprocess.Process) -> None:
    """Returns when a question is answered with 200 at a socket."""
    connector = aiohttp.UnixConnector(str(path))
    async with aiohttp.ClientSession(connector=connector) as http:
        async with asyncio.timeout(60):
            while process.returncode is None:
                try:
                    async with http.get(url) as answer:
                        if answer.status == 200:
                            return
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.01)
    raise SystemExit("the gateway did not start")


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def timed(name: str, count: int, call: Callable[[int], Awaitable[Any]]) -> None:
    times = []
    for i in range(count):
        began = time.perf_counter()
        await call(i)
        times.append((time.perf_counter() - began) * 1000)
    show(name, times)


def show(name: str, times: Sequence[float]) -> None:
    times = sorted(times)
    print(
        f"{name:<28} p50 {statistics.median(times):6.1f} ms   "
        f"p95 {times[int(len(times) * 0.95) - 1]:6.1f} ms   max {times[-1]:6.1f} ms"
    )


async def calls(home: Path, count: int) -> None:
    connector = aiohttp.UnixConnector(str(home / "admin.sock"))
    async with aiohttp.ClientSession(connector=connector) as http:

        async def post(path: str, body: object = None) -> None:
            async with http.post(ADMIN + path, json=body) as got:
                assert got.status == 200, await got.text()

        async def get(path: str) -> None:
            async with http.get(ADMIN + path) as got:
                assert got.status == 200, await got.text()
                await got.read()

        async def register(i: int) -> None:
            body = {"run_name": f"new{i}", "domain": f"new{i}.example.com", "https": False}
            await post(f"{BASE}/register", body | {"auth": False, "options": {}})

        async def add(i: int) -> None:
            body = {"job_id": f"job{i}", "socket": f"{home}/replica.sock"}
            await post(f"{BASE}/new{i}/replicas/register", body)

        async def unregister(i: int) -> None:
            await post(f"{BASE}/new{i}/unregister")

        await timed("register a service", count, register)
        await timed("register a replica", count, add)
        await timed(
            "unregister a replica",
            count,
            lambda i: post(f"{BASE}/new{i}/replicas/job{i}/unregister"),
        )
        await timed("unregister a service", count, unregister)
        began = time.perf_counter()
        await asyncio.gather(*(register(i) for i in range(count)))
        took = (time.perf_counter() - began) * 1000
        print(f"{f'register {count} at once':<28} all {took:6.1f} ms")
        for path in ("/api/services/list", "/api/stats/collect", "/api/status", "/metrics"):
            await timed(f"GET {path}", 10, lambda _, path=path: get(path))  # type: ignore[misc]


async def use(home: Path, services: int) -> None:
    """Each service is asked once, so that it has something to show."""
    connector = aiohttp.UnixConnector(str(home / "http.sock"))
    async with aiohttp.ClientSession(connector=connector) as http:
        for i in range(services):
            async with http.get(f"http://s{i}.example.com/v1/models") as got:
                assert got.status == 200, await got.text()
    await asyncio.sleep(1.5)  # workers report once a second


def scrape(path: Path) -> tuple[float, int]:
    """Milliseconds and size of one /metrics. In a thread, and on a bare socket: what is measured
    beside it must not wait for its reader."""
    began = time.perf_counter()
    size = 0
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n")
        while part := sock.recv(1 << 20):
            size += len(part)
    return (time.perf_counter() - began) * 1000, size


@contextlib.asynccontextmanager
async def meanwhile(call: Callable[[], Awaitable[None]], every_s: float) -> AsyncIterator[None]:
    """The call is made again and again, until the block ends and the last one is answered."""
    over = asyncio.Event()

    async def again() -> None:
        while not over.is_set():
            await call()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), every_s)

    task = asyncio.create_task(again())
    try:
        yield
    finally:
        over.set()
        await task


async def while_scraped(home: Path, count: int, *, scraped: bool) -> None:
    path = home / "admin.sock"
    registering: list[float] = []
    asking: list[float] = []
    scrapes: list[tuple[float, int]] = []
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as http,
        contextlib.AsyncExitStack() as stack,
    ):

        async def ask() -> None:
            began = time.perf_counter()
            async with http.get(f"{ADMIN}/healthz") as got:
                await got.read()
            asking.append((time.perf_counter() - began) * 1000)

        async def scrape_once() -> None:
            scrapes.append(await asyncio.to_thread(scrape, path))

        await stack.enter_async_context(meanwhile(ask, ASK_EVERY_S))
        if scraped:
            await stack.enter_async_context(meanwhile(scrape_once, SCRAPE_EVERY_S))
        for i in range(count):
            body = {"run_name": f"w{i}", "domain": f"w{i}.example.com", "https": False}
            began = time.perf_counter()
            async with http.post(
                f"{ADMIN}{BASE}/register", json=body | {"auth": False, "options": {}}
            ) as got:
                assert got.status == 200, await got.text()
            registering.append((time.perf_counter() - began) * 1000)
            async with http.post(f"{ADMIN}{BASE}/w{i}/unregister") as got:
                assert got.status == 200, await got.text()
            await asyncio.sleep(REGISTER_EVERY_S)
    if scraped:
        show(f"scrape of {scrapes[-1][1] / 1e6:.1f} MB", [took for took, _ in scrapes])
    how = "scraped" if scraped else "not scraped"
    show(f"register, {how}", registering)
    show(f"/healthz, {how}", asking)


async def run(services: int, replicas: int, count: int, workers: int) -> None:
    with tempfile.TemporaryDirectory(prefix="gw") as folder:
        home = Path(folder)
        (home / "r").mkdir()
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(home / "replica.sock"))
        replica = await asyncio.start_unix_server(answer, sock=listening, backlog=4096)
        fill(home, services, replicas)
        (home / "gateway.yaml").write_text(FILE.format(home=home, workers=workers))
        began = time.perf_counter()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gatewayd", "run", "-c", str(home / "gateway.yaml")
        )
        try:
            await answered(PUBLIC + "/", home / "http.sock", process)
            took = time.perf_counter() - began
            await answered(ADMIN + "/readyz", home / "admin.sock", process)
            ready = time.perf_counter() - began
            print(f"{services} services, {services * replicas} replicas, {workers} workers")
            print(f"{'start to serving':<28} {took:.2f} s, to ready {ready:.2f} s")
            await calls(home, count)
            await use(home, services)
            for scraped in (False, True):
                await while_scraped(home, 2 * count, scraped=scraped)
        finally:
            process.send_signal(signal.SIGTERM)
            await process.wait()
            replica.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--services", type=int, default=500)
    parser.add_argument("--replicas", type=int, default=4, help="of each service")
    parser.add_argument("--calls", type=int, default=40)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    asyncio.run(run(options.services, options.replicas, options.calls, options.workers))


if __name__ == "__main__":
    main()
