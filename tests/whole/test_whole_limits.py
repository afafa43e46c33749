"""Rate limits at the edge, by the real nginx's decisions for the same arrivals; exact over all
workers; keyed by the real client behind a trusted proxy."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from nginx_reference import Arrival, Explanations, arrive, nginx
from waiting import until
from whole_gateway import Gateway
from whole_replicas import Replica
from whole_watch import worker

from gatewayd.core.ratelimit import rate_milli

pytestmark = pytest.mark.asyncio(loop_scope="module")

# name: (requests per second, burst, moments of arrival in ms)
SCHEDULES: dict[str, tuple[float, int, list[int]]] = {
    "refilling": (5, 3, [0] * 6 + [100, 300, 300, 500, 500, 1150] + [1150] * 4),
    "one-per-interval": (5, 0, [0, 0, 100, 150, 260, 300, 520, 900, 900]),
    "hammering": (5, 0, list(range(0, 1500, 53))),
    "large-burst": (10, 40, [0] * 50 + [450] * 10 + [1250] * 15),
    "per-minute": (1.5, 2, [0] * 5 + [400, 800, 800, 1100, 1500]),
}
BURST = 20


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def gateway(shared_home: Path) -> AsyncIterator[Gateway]:
    replica = shared_home / "r.sock"
    key = {"type": "header", "header": "X-Key"}
    services = [
        {
            "name": name,
            "rate_limits": [{"prefix": "/", "rps": rps, "burst": burst, "key": key}],
            "replicas": [f"unix:{replica}"],
        }
        for name, (rps, burst, _) in SCHEDULES.items()
    ]
    services.append(
        {
            "name": "burst",
            "rate_limits": [
                {"prefix": "/", "rps": 0.01, "burst": BURST},
                {"prefix": "/v1/", "rps": 0.01, "burst": 0},
                {"prefix": "/free/", "rps": 1e6, "burst": 1000},
            ],
            "replicas": [f"unix:{replica}"],
        }
    )
    async with (
        Replica("r", replica),
        Gateway(shared_home, services, trusted_proxies=["127.0.0.2/32"]) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    http = "\n".join(
        f"    limit_req_zone $http_x_key zone={name}:1m rate={round(rps * 60)}r/m;"
        for name, (rps, _, _) in SCHEDULES.items()
    )
    server = "\n".join(
        f"        location /{name} {{"
        f" limit_req zone={name}{f' burst={burst}' if burst else ''} nodelay; empty_gif; }}"
        for name, (_, burst, _) in SCHEDULES.items()
    )
    directory: Path = tmp_path_factory.mktemp("nginx")
    with nginx(directory, http=http, server=server) as port:
        yield port


def explained(name: str, arrivals: list[Arrival]) -> Explanations:
    rps, burst, _ = SCHEDULES[name]
    explanations = Explanations(rate_milli(rps), burst)
    for arrival in arrivals:
        assert explanations.explain(arrival), (name, arrival, arrivals)
    return explanations


@pytest.mark.needs("nginx")
async def test_the_gateway_and_nginx_decide_alike(gateway: Gateway, reference: int) -> None:
    """One model explains every answer of both; where the millisecond of an arrival does not
    matter to it, they are the same answers."""

    async def both(name: str) -> tuple[list[Arrival], list[Arrival]]:
        moments = SCHEDULES[name][2]
        key = ("X-Key", name)
        return await asyncio.gather(
            arrive(gateway.port, "/who", moments, headers=[key], host=f"{name}.test"),
            arrive(reference, f"/{name}", moments, headers=[key]),
        )

    measured = await asyncio.gather(*map(both, SCHEDULES))
    for name, (ours, theirs) in zip(SCHEDULES, measured, strict=True):
        for arrivals in (ours, theirs):
            assert explained(name, arrivals).certain >= len(arrivals) / 2, name
        refused = [a for a in ours if a.status == 429]
        assert refused
        assert all(int(a.headers["retry-after"]) >= 1 for a in refused)
        assert {a.status for a in ours} == {200, 429}


async def statuses(
    gateway: Gateway, path: str, count: int, *, headers: str = "", source: str = "127.0.0.1"
) -> Counter[int]:
    """Of so many requests at once, each on a connection of its own."""

    async def one(start: asyncio.Event) -> int:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", gateway.port, local_addr=(source, 0)
        )
        await start.wait()
        writer.write(f"GET {path} HTTP/1.1\r\nHost: burst.test\r\n{headers}\r\n".encode())
        line = await reader.readline()
        writer.close()
        await writer.wait_closed()
        return int(line.split()[1])

    start = asyncio.Event()
    tasks = [asyncio.create_task(one(start)) for _ in range(count)]
    await asyncio.sleep(0)
    start.set()
    async with asyncio.timeout(30):
        return Counter(await asyncio.gather(*tasks))


async def test_a_burst_over_many_connections_and_all_workers_is_exact(gateway: Gateway) -> None:
    found = await statuses(gateway, "/who", 150)
    assert found == {200: BURST + 1, 429: 150 - BURST - 1}

    # The connections were spread, or this would have shown nothing.
    def lines() -> list[str]:
        return [line for line in gateway.access_lines() if " burst " in line]

    await until(lambda: len(lines()) >= 150, "access lines")
    assert len({worker(line) for line in lines()}) == 2


async def test_the_longest_prefix_decides_on_the_normal_path(gateway: Gateway) -> None:
    behind = {"source": "127.0.0.3"}
    assert await statuses(gateway, "/v1/a", 3, **behind) == {404: 1, 429: 2}
    for spelling in ("//v1/a", "/x/../v1/a", "/%761/a", "/v1/./b?c=d", "/v1/"):
        assert await statuses(gateway, spelling, 1, **behind) == {429: 1}, spelling
    assert await statuses(gateway, "/v1", 1, **behind) == {404: 1}
    assert await statuses(gateway, "/free/x", 30, **behind) == {404: 30}


async def test_an_address_is_that_of_the_real_client_only_behind_a_trusted_proxy(
    gateway: Gateway,
) -> None:
    def forwarded(client: str) -> str:
        return f"X-Forwarded-For: {client}\r\n"

    trusted = {"source": "127.0.0.2"}
    for client in ("198.51.100.1", "198.51.100.2"):
        found = await statuses(gateway, "/v1/a", 2, headers=forwarded(client), **trusted)
        assert found == {404: 1, 429: 1}, client
    # Whoever is not trusted is one client whatever it claims.
    for number, client in enumerate(("203.0.113.1", "203.0.113.2")):
        found = await statuses(gateway, "/v1/a", 1, headers=forwarded(client), source="127.0.0.4")
        assert found == ({404: 1} if not number else {429: 1}), client


async def test_retry_after_tells_the_truth(gateway: Gateway) -> None:
    """Whoever waits as long as told passes."""
    _, burst, _ = SCHEDULES["one-per-interval"]
    assert burst == 0
    key = [("X-Key", "patient")]
    host = "per-minute.test"
    arrivals = await arrive(gateway.port, "/who", [0] * 4, headers=key, host=host)
    assert [a.status for a in arrivals] == [200, 200, 200, 429]
    wait_s = int(arrivals[-1].headers["retry-after"])
    assert wait_s == 1  # 1/1.5 s, rounded up to a whole second
    began = time.monotonic()
    (later,) = await arrive(gateway.port, "/who", [wait_s * 1000], headers=key, host=host)
    assert later.status == 200
    assert time.monotonic() - began >= wait_s
