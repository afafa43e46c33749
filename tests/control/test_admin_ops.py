"""Health, status, metrics and reload on the admin address; who may speak to it."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from gateway import FILE, Gateway, running, write
from plant import Running
from waiting import until

from gatewayd.control.api.guard import host_of, is_local
from gatewayd.control.control import Control
from gatewayd.core.model import TcpAddress


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gw") as folder:
        yield Path(folder)


async def test_health_and_readiness(home: Path) -> None:
    async with running(home) as gateway:
        assert await gateway.get("/healthz") == (200, "ok\n")
        assert await gateway.get("/readyz") == (200, "ready\n")
        status, text = await gateway.get("/readyz?verbose")
        assert (status, text.splitlines()[-1]) == (200, "ready")
        assert "[+] workers: 2 of 2 serve" in text
        gateway.control.parts.workers.slots[0].kill()
        await until(lambda: gateway.control.parts.workers.slots[0].process is None)
        status, text = await gateway.get("/readyz?verbose")
        assert status == 503
        assert "[-] workers: 1 of 2 serve" in text


async def test_status_and_metrics_tell_the_same(home: Path) -> None:
    async with running(home) as gateway:
        await until(lambda: ("main/llama", "a") in gateway.control.parts.state.unreachable)
        await until(
            lambda: gateway.control.parts.telemetry.totals()["main/llama"].codes == {200: 2}
        )
        _, status = await gateway.get("/api/status")
        (service,) = status["services"]
        (replica,) = service["replicas"]
        assert replica["state"] == "unreachable"
        assert [worker["state"] for worker in status["workers"]] == ["ready", "ready"]
        assert {entry["kind"] for entry in status["listeners"]} == {"http", "admin"}
        assert (status["ready"], status["draining"], status["bridge"]) == (True, False, None)
        _, text = await gateway.get("/metrics")
        assert 'gatewayd_replicas{service="llama",state="unreachable"} 1' in text
        assert 'gatewayd_requests_total{code="200",service="llama"} 2' in text
        assert "gatewayd_workers 2" in text
        assert "gatewayd_connections 4" in text


async def test_a_removed_replica_is_counted_while_requests_run_on_it(home: Path) -> None:
    series = 'gatewayd_requests_in_flight{replica="a",service="llama"}'
    async with running(home) as gateway:
        requests = Running(gateway.control.parts, "main/llama", "a", 2)
        _, text = await gateway.get("/metrics")
        assert f"{series} 2\n" in text
        replica = "/api/registry/main/services/llama/replicas/a"
        assert await gateway.post(f"{replica}/unregister") == (200, {"status": "ok"})
        requests.end_one()
        _, text = await gateway.get("/metrics")
        assert f"{series} 1\n" in text
        again = {"id": "a", "url": "http://127.0.0.1:9"}
        url = "/api/registry/main/services/llama/replicas/register"
        assert (await gateway.post(url, again))[0] == 200
        _, text = await gateway.get("/metrics")
        assert text.count(series) == 1
        assert (await gateway.post(f"{replica}/unregister"))[0] == 200
        requests.end_one()
        _, text = await gateway.get("/metrics")
        assert series not in text
        requests.table.close()


async def test_a_replica_is_seen_up_again_within_a_second(home: Path) -> None:
    async with running(home) as gateway:
        state = gateway.control.parts.state
        await until(lambda: ("main/llama", "a") in state.unreachable)
        server = await asyncio.start_unix_server(lambda r, w: w.close(), home / "a.sock")
        await until(lambda: not state.unreachable)
        server.close()


RELOADED = (
    FILE + "    model: tiny\n  - {{name: new, replicas: [{{id: n, url: 'http://127.0.0.1:9'}}]}}\n"
)


async def test_reload_applies_the_difference(home: Path) -> None:
    async with running(home) as gateway:
        assert await gateway.post("/api/reload") == (
            200,
            {"status": "ok", "applied": True, "changes": []},
        )
        write(home, RELOADED)
        status, dry = await gateway.post("/api/reload?dry_run=1")
        assert (status, dry["applied"]) == (200, False)
        assert dry["changes"] == ["services: new added", "services.llama.model: null -> tiny"]
        assert set(gateway.control.parts.state.services) == {"main/llama"}
        _, answer = await gateway.post("/api/reload")
        assert (answer["applied"], answer["changes"]) == (True, dry["changes"])
        assert set(gateway.control.parts.state.services) == {"main/llama", "main/new"}
        assert (await gateway.get("/readyz"))[0] == 200
        write(home)
        await gateway.post("/api/reload")
        assert set(gateway.control.parts.state.services) == {"main/llama"}
        _, text = await gateway.get("/metrics")
        assert 'gatewayd_config_reloads_total{result="success"} 3' in text
        assert 'service="new"' not in text


async def test_a_bad_file_changes_nothing_and_is_counted(home: Path) -> None:
    async with running(home) as gateway:
        version = gateway.control.parts.publisher.version
        gateway.file.write_text("domain: x.example\nlisten: {htp: 1}\n")
        status, answer = await gateway.post("/api/reload")
        assert status == 400
        assert f"{gateway.file}:2: listen.htp" in answer["detail"]
        assert "did you mean `http`?" in answer["detail"]
        write(home, FILE.replace("workers: 2", "workers: 3"))
        status, answer = await gateway.post("/api/reload")
        assert (status, answer["detail"]) == (
            400,
            "workers: 2 -> 3; restart gatewayd to change it",
        )
        write(home, FILE + "limits: {{header_size: 16KiB}}\n")
        status, answer = await gateway.post("/api/reload")
        assert status == 400
        assert answer["refused"][0].startswith("limits.header_size: ")
        assert gateway.control.parts.publisher.version == version
        _, text = await gateway.get("/metrics")
        assert 'gatewayd_config_reloads_total{result="failure"} 3' in text


@pytest.mark.parametrize("by", ["signal", "call"])
async def test_the_log_says_what_a_reload_did(
    home: Path, caplog: pytest.LogCaptureFixture, by: str
) -> None:
    caplog.set_level("INFO")
    async with running(home) as gateway:

        async def reload() -> None:
            if by == "signal":
                await gateway.control.parts.reloader.reload_for_signal()
            else:
                await gateway.post("/api/reload")

        write(home, RELOADED)
        await gateway.post("/api/reload?dry_run=1")
        assert not any("reload" in message for message in caplog.messages)
        await reload()
        assert "reload: services: new added" in caplog.messages
        assert "reloaded: 2 changes" in caplog.messages
        gateway.file.write_text("x: 1")
        await reload()
        assert "reload failed; the running configuration stays" in caplog.messages
        assert "main/new" in gateway.control.parts.state.services


async def test_what_the_registry_holds_outlives_a_reload(home: Path) -> None:
    async with running(home) as gateway:
        replicas = "/api/registry/main/services/llama/replicas"
        await gateway.post("/api/registry/main/services/register", {"run_name": "api"})
        await gateway.post(f"{replicas}/register", {"id": "x", "url": "http://127.0.0.1:9"})
        await gateway.post(f"{replicas}/a/unregister")
        write(home, RELOADED)
        assert (await gateway.post("/api/reload"))[0] == 200
        services = gateway.control.parts.state.services
        assert set(services) == {"main/llama", "main/new", "main/api"}
        assert [r.id for r in services["main/llama"].replicas] == ["x"]  # `a` was taken out
        assert services["main/llama"].model == "tiny"
        write(home, FILE + "  - name: api\n")
        status, answer = await gateway.post("/api/reload")
        assert status == 400
        assert "Service main/api is registered already" in answer["detail"]
        assert set(services) == {"main/llama", "main/new", "main/api"}


OVER_TCP = FILE.replace("unix:{home}/admin.sock", "127.0.0.1:0").replace(
    "http:", "metrics: '127.0.0.1:0', http:"
)


def admin_url(control: Control) -> str:
    return f"http://{control.sockets.admin_address}"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("gateway", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("10.0.0.1", 403),
        ("", 403),
    ],
)
def test_hosts_that_may_be_named(host: str, status: int) -> None:
    bound = TcpAddress("127.0.0.1", 8000)
    assert is_local(host_of(host), bound) is (status == 200)


def test_an_address_bound_everywhere_may_be_named_by_any_number() -> None:
    everywhere = TcpAddress("0.0.0.0", 8000)
    assert is_local("10.0.0.1", everywhere)
    assert not is_local("evil.example", everywhere)


async def test_a_foreign_host_is_refused_over_tcp(home: Path) -> None:
    async with running(home, OVER_TCP, base=admin_url) as gateway:
        assert (await gateway.get("/api/status"))[0] == 200
        headers = {"Host": "evil.example"}
        assert await gateway.get("/api/status", headers=headers) == (
            403,
            {"detail": "This Host is not served on the admin address"},
        )
        await only_reading(gateway, f"http://{gateway.control.sockets.metrics_address}")


async def only_reading(gateway: Gateway, metrics: str) -> None:
    headers = {"Host": "scraped.example:9100"}
    async with aiohttp.ClientSession() as http:
        for path, status in (
            ("/metrics", 200),
            ("/healthz", 200),
            ("/readyz", 200),
            ("/api/status", 404),
            ("/", 404),
        ):
            async with http.get(metrics + path, headers=headers) as response:
                assert response.status == status, path
        async with http.post(f"{metrics}/api/reload") as response:
            assert response.status == 404


async def test_failures_inside_show_nothing(
    home: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(home) as gateway:

        def broken() -> None:
            raise ZeroDivisionError("inner words")

        monkeypatch.setattr(gateway.control.parts.status, "_listeners", broken)
        assert await gateway.get("/api/status") == (500, "Internal Server Error")
    assert "inner words" in caplog.text
