"""Counts are exact over all workers, Prometheus reads them, and every view tells the same."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from waiting import until
from whole_gateway import Gateway, Metrics, gatewayd
from whole_replicas import Replica
from whole_streams import Clients, begin

pytestmark = pytest.mark.asyncio(loop_scope="module")

REQUEST_ID = re.compile(r" ([0-9a-f]{16})[0-9a-f]{8}( |$)")  # the worker's own part of it
TOKEN = "sk-counted"  # noqa: S105
SERVICES = ("open", "guarded", "limited", "empty", "dead", "routed")


@dataclass
class Whole:
    gateway: Gateway
    replica: Replica
    routed: Replica  # behind the router

    async def ask(
        self, service: str, path: str = "/who", *, body: bytes | None = None, **headers: str
    ) -> tuple[int, bytes]:
        """On a connection of its own, so that every worker has its share."""
        connector = aiohttp.TCPConnector(force_close=True)
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.request(
                "GET" if body is None else "POST",
                self.gateway.url + path,
                data=body,
                headers={"Host": f"{service}.test", **headers},
            ) as response,
        ):
            return response.status, await response.read()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def whole(shared_home: Path) -> AsyncIterator[Whole]:
    replica, routed = (Replica(name, shared_home / f"{name}.sock") for name in ("r0", "r1"))
    here = [{"id": "r0", "socket": str(replica.path)}]
    services = [
        {"name": "open", "auth": False, "client_max_body_size": "1KiB", "replicas": here},
        {"name": "guarded", "allowed_paths": ["/who"], "replicas": here},
        {
            "name": "limited",
            "auth": False,
            "rate_limits": [{"prefix": "/", "rps": 0.01, "burst": 2}],
            "replicas": here,
        },
        {"name": "empty", "auth": False, "replicas": []},
        {
            "name": "dead",
            "auth": False,
            "replicas": [{"id": "gone", "socket": str(shared_home / "gone.sock")}],
        },
        {
            "name": "routed",
            "auth": False,
            "router": "sglang",
            "replicas": [{"id": "r1", "socket": str(routed.path)}],
        },
    ]
    auth = {"type": "tokens", "tokens": [{"name": "a", "token": TOKEN}]}
    async with replica, routed, Gateway(shared_home, services, auth=auth) as gateway:
        gateway.allow("replica gone of main/dead: .* does not accept connections")
        await gateway.router_pid("routed")
        yield Whole(gateway, replica, routed)


async def reported(gateway: Gateway, requests: float) -> Metrics:
    """The metrics once so many requests are in them; workers report once a second."""

    async def enough() -> Metrics | None:
        metrics = await gateway.metrics()
        return metrics if metrics.total("gatewayd_requests_total") >= requests else None

    found = await until(enough, f"{requests:g} requests are reported")
    assert found is not None
    return found


async def test_a_known_series_is_counted_exactly(whole: Whole) -> None:
    series: list[tuple[str, str, bytes | None, dict[str, str], int, int]] = [
        ("open", "/who", None, {}, 200, 40),
        ("open", "/nothing-here", None, {}, 404, 3),
        ("open", "/who", b"x" * 1000, {}, 200, 5),
        ("open", "/who", b"x" * 2000, {}, 413, 2),
        ("guarded", "/who", None, {"Authorization": f"bearer {TOKEN}"}, 200, 7),
        ("guarded", "/who", None, {"Authorization": "Bearer wrong"}, 401, 3),
        ("guarded", "/who", None, {}, 401, 1),
        ("guarded", "/other", None, {}, 403, 2),
        ("limited", "/who", None, {}, 200, 3),
        ("limited", "/who", None, {}, 429, 6),
        ("empty", "/who", None, {}, 503, 2),
        ("dead", "/who", None, {}, 502, 1),
        ("absent", "/who", None, {}, 404, 4),
    ]
    sent = {}
    for service, path, body, headers, status, times in series:
        for _ in range(times):
            got, text = await whole.ask(service, path, body=body, **headers)
            assert got == status, (service, path, got, text)
            key = (service, str(status))
            seen = sent.get(key, (0, 0, 0))
            size = len(body or b"") if status != 413 else 0
            sent[key] = (seen[0] + 1, seen[1] + size, seen[2] + len(text))
    total = sum(count for count, _, _ in sent.values())
    metrics = await reported(whole.gateway, total)
    for (service, code), (count, _, _) in sent.items():
        label = "" if service == "absent" else service
        assert metrics.total("gatewayd_requests_total", service=label, code=code) == count
    assert metrics.total("gatewayd_requests_total") == total
    for service in SERVICES:
        mine = {code: found for (name, code), found in sent.items() if name == service}
        count = sum(c for c, _, _ in mine.values())
        name = "gatewayd_request_duration_seconds"
        assert metrics.total(f"{name}_count", service=service) == count
        assert metrics.total(f"{name}_bucket", service=service, le="+Inf") == count
        assert metrics.total("gatewayd_request_bytes_total", service=service) == sum(
            size for _, size, _ in mine.values()
        )
        assert metrics.total("gatewayd_response_bytes_total", service=service) == sum(
            size for _, _, size in mine.values()
        )
    # First bytes are those of replicas.
    first = metrics.total("gatewayd_time_to_first_byte_seconds_count", service="open")
    assert first == 40 + 3 + 5
    rejections = {
        ("guarded", "auth"): 4,
        ("guarded", "path"): 2,
        ("limited", "rate_limit"): 6,
        ("open", "body_size"): 2,
        ("empty", "no_replica"): 2,
    }
    for (service, reason), count in rejections.items():
        found = metrics.total("gatewayd_rejections_total", service=service, reason=reason)
        assert found == count, (service, reason, found)
    assert metrics.total("gatewayd_rejections_total") == sum(rejections.values())
    assert metrics.total("gatewayd_upstream_errors_total", service="dead", replica="gone") >= 1
    assert metrics.total("gatewayd_retries_total", service="open") == 0
    # Each worker had its share of it.
    await until(lambda: len(whole.gateway.access_lines()) >= total)
    ids = [REQUEST_ID.search(line) for line in whole.gateway.access_lines()]
    assert len({found[1] for found in ids if found}) == 2


async def test_what_runs_is_shown_while_it_runs(whole: Whole) -> None:
    whole.replica.gap_s = whole.routed.gap_s = 0.02
    async with aiohttp.ClientSession() as session:
        streams = [
            *await begin(Clients(whole.gateway.url, "open", session), 4, tokens=50),
            *await begin(Clients(whole.gateway.url, "routed", session), 2, tokens=50),
        ]
        whole.replica.stepped = whole.routed.stepped = True  # they hold their breath
        metrics = await whole.gateway.metrics()
        name = "gatewayd_requests_in_flight"
        assert metrics.total(name, service="open", replica="r0") == 4
        assert metrics.total(name, service="routed", replica="r1") == 2
        assert (await whole.gateway.in_flight("routed")) == {"r1": 2}
        for replica in (whole.replica, whole.routed):
            replica.stepped = False
            replica.gap_s = 0.0
            replica.step(1000)
        assert {await one.over() for one in streams} == {"whole"}

    async def none() -> bool:
        return (await whole.gateway.metrics()).total(name) == 0

    await until(none)


async def test_gauges_of_the_whole(whole: Whole) -> None:
    metrics = await whole.gateway.metrics()
    assert metrics.total("gatewayd_workers") == 2
    assert metrics.total("gatewayd_worker_restarts_total") == 0
    assert metrics.total("gatewayd_router_up", service="routed") == 1
    assert metrics.total("gatewayd_router_restarts_total", service="routed") == 0
    assert metrics.total("gatewayd_replicas", service="routed", state="up") == 1
    assert metrics.total("gatewayd_build_info") == 1
    services = {dict(labels)["service"] for _, labels in metrics if "service" in dict(labels)}
    assert services == {"", *SERVICES}


@pytest.mark.needs("promtool")
async def test_promtool_finds_nothing_to_say(whole: Whole) -> None:
    process = await asyncio.create_subprocess_exec(
        *("promtool", "check", "metrics"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    text = (await whole.gateway.metrics()).text
    async with asyncio.timeout(30):
        out, _ = await process.communicate(text.encode())
    assert (process.returncode, out.decode()) == (0, "")


async def test_status_tells_the_same_everywhere(whole: Whole) -> None:
    gateway = whole.gateway
    admin = ("--admin", f"unix:{gateway.admin_path}")
    printed = ""

    async def same() -> dict[str, Any]:
        """Once the workers have reported what went before, which they do once a second."""
        nonlocal printed
        code, printed, err = await gatewayd("status", "--json", *admin)
        assert (code, err) == (0, "")
        shown, asked = json.loads(printed), await gateway.status()
        for one in (shown, asked):  # what moves by itself
            del one["uptime_seconds"]
            for service in one["services"]:
                del service["requests_last_minute"]
            for process in (*one["workers"], one["bridge"]):
                del process["connections"]
        return asked if shown == asked else {}

    asked = await until(same, "the command and the call tell the same")
    code, table, err = await gatewayd("status", *admin)
    assert (code, err) == (0, "")
    lines = [line.split() for line in table.splitlines()]
    for service in asked["services"]:
        rows = [row for row in lines if row and row[0] == service["name"]]
        assert [service["domains"][0] in row for row in rows].count(True) == 1
        for replica in service["replicas"]:
            wanted = [service["name"], replica["id"], replica["state"], str(replica["in_flight"])]
            assert [*wanted, replica["address"]] in rows
    (router,) = [row for row in lines if row[:2] == ["routed", "sglang"]]
    told = (await gateway.service("routed"))["router"]
    assert router == ["routed", "sglang", told["mode"], "ready", told["endpoint"], "1/1", "0"]
    for worker in asked["workers"]:
        row = ["worker", str(worker["slot"]), str(worker["pid"]), "ready", "0"]
        assert row in [found[:5] for found in lines]
    assert f"pid {gateway.pid}" in table
    assert f"http 127.0.0.1:{gateway.port}" in table
    assert TOKEN not in table + printed


async def test_access_lines_say_what_happened(whole: Whole) -> None:
    status, text = await whole.ask("open", "/who?secret=1", body=b"12345")
    assert status == 200
    await until(lambda: "/who" in whole.gateway.access_lines()[-1])

    def last() -> list[str]:
        return [line for line in whole.gateway.access_lines() if '"POST /who" 200 5 ' in line]

    await until(last)
    fields = last()[-1].split()
    assert fields[1:5] == ["127.0.0.1", "open", "r0", "direct"]
    assert fields[5:10] == ['"POST', '/who"', "200", "5", str(len(text))]
    assert 0 <= float(fields[10]) <= float(fields[11]) < 5
    assert fields[12] == "-"  # nobody closed it before its end
    assert "secret" not in last()[-1]


async def test_a_separate_address_for_metrics_only(home: Path) -> None:
    gateway = Gateway(home, workers=1)
    gateway.config["listen"]["metrics"] = "127.0.0.1:0"
    async with gateway, aiohttp.ClientSession() as session:
        (address,) = [
            entry["address"]
            for entry in (await gateway.status())["listeners"]
            if entry["kind"] == "metrics"
        ]
        for path, status in (("/metrics", 200), ("/healthz", 200), ("/readyz", 200)):
            async with session.get(f"http://{address}{path}") as response:
                assert response.status == status
        for path in ("/api/status", "/api/services/list", "/"):
            async with session.get(f"http://{address}{path}") as response:
                assert response.status == 404
