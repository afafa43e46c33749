"""What other programs rely on, word by word: the calls of an existing registry."""

from __future__ import annotations

import json
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from gateway import FILE, Gateway, running

from gatewayd.core.secret import Secret

OK = (200, {"status": "ok"})
MAIN = "/api/registry/main/services"
# As a server of today sends it; the keys of its routers are those of older ones.
SERVICE = {
    "id": "9a" * 16,
    "run_name": "Run-1",
    "domain": "Run-1.Example.com",
    "https": False,
    "auth": False,
    "client_max_body_size": 67108864,
    "options": {},
    "rate_limits": [],
    "ssh_private_key": "PROJECT KEY",
    "has_router_replica": False,
    "read_timeout": 300,
    "cors_enabled": True,
}
REPLICA = {
    "job_id": "Job-1",
    "app_port": 8000,
    "ssh_host": "root@localhost",
    "ssh_port": 10022,
    "ssh_proxy": {"hostname": "10.0.0.9", "username": "ubuntu", "port": 22},
    "ssh_proxy_private_key": None,
    "ssh_head_proxy": {"hostname": "head.example", "username": "bastion", "port": 2222, "x": 1},
    "ssh_head_proxy_private_key": "HEAD KEY",
    "internal_ip": None,
}

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gw") as folder:
        yield Path(folder)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_gateway(home: Path) -> AsyncIterator[Gateway]:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(home / "a.sock"))
        listening.listen(64)
        async with running(home) as gateway:
            yield gateway


@pytest_asyncio.fixture(loop_scope="module")
async def gateway(module_gateway: Gateway) -> AsyncIterator[Gateway]:
    """Without registered services, for each test."""
    yield module_gateway
    _, listed = await module_gateway.get("/api/services/list")
    for entry in listed["services"]:
        path = f"/api/registry/{entry['project_name']}/services/{entry['run_name']}/unregister"
        assert await module_gateway.post(path) == OK


async def register(gateway: Gateway, **change: Any) -> tuple[int, Any]:
    return await gateway.post(f"{MAIN}/register", SERVICE | change)


async def refused(gateway: Gateway, path: str, body: object = None) -> str:
    status, answer = await gateway.post(path, body)
    assert (status, list(answer)) == (400, ["detail"]), answer
    assert isinstance(answer["detail"], str)
    return str(answer["detail"])


async def test_texts_that_servers_and_users_read(gateway: Gateway) -> None:
    url = {"job_id": "Job-1", "url": "http://127.0.0.1:9"}
    assert await register(gateway) == OK
    assert await register(gateway) == (
        400,
        {"detail": "Service main/run-1 is already registered"},
    )
    assert await register(gateway, run_name="other") == (
        400,
        {"detail": "Domain name 'run-1.example.com' is already taken by another service"},
    )
    assert await gateway.post("/api/registry/MAIN/services/RUN-1/replicas/register", url) == OK
    run = f"{MAIN}/run-1"
    for path, body, detail in (
        ("replicas/register", url, "Replica Job-1 already exists in service main/run-1"),
        (
            "replicas/job-1/unregister",
            None,
            "Replica job-1 does not exist in service main/run-1, cannot unregister",
        ),
        ("set_id", {"id": "0" * 32}, "Service main/run-1 already has an ID"),
    ):
        assert await refused(gateway, f"{run}/{path}", body) == detail
    for path, body, detail in (
        ("unregister", None, "Service main/none is not registered, cannot unregister"),
        ("replicas/register", url, "Service main/none does not exist, cannot register replica"),
        (
            "replicas/Job-1/unregister",
            None,
            "Service main/none does not exist, cannot unregister replica",
        ),
        ("set_id", {"id": "0" * 32}, "Service main/none does not exist, cannot set ID"),
    ):
        assert await refused(gateway, f"{MAIN}/None/{path}", body) == detail


async def test_the_list_tells_ids_and_replicas(gateway: Gateway) -> None:
    await register(gateway, id=None)
    await gateway.post(
        f"{MAIN}/run-1/replicas/register", {"job_id": "Job-1", "url": "http://127.0.0.1:9"}
    )
    listed = {
        "id": None,
        "project_name": "main",
        "run_name": "run-1",
        "replicas": [{"id": "Job-1"}],
    }
    assert await gateway.get("/api/services/list") == (200, {"services": [listed]})
    assert await gateway.post(f"{MAIN}/Run-1/set_id", {"id": "ab" * 16}) == OK
    listed["id"] = "ab" * 16
    assert await gateway.get("/api/services/list") == (200, {"services": [listed]})


async def test_a_replica_behind_ssh_is_reached_by_its_hops(gateway: Gateway) -> None:
    seen: list[Any] = []

    async def open_(service_key: str, replica: Any) -> Any:
        seen.append(replica)
        return replica

    tunneled = gateway.control.parts.registry._tunnels
    original, tunneled.open = tunneled.open, open_  # type: ignore[method-assign]
    try:
        await register(gateway)
        assert await gateway.post(f"{MAIN}/run-1/replicas/register", REPLICA) == OK
    finally:
        tunneled.open = original  # type: ignore[method-assign]
    (replica,) = seen
    assert replica.tunnel.app_port == 8000
    assert [(hop.destination, hop.port, hop.key) for hop in replica.tunnel.hops] == [
        ("bastion@head.example", 2222, Secret("HEAD KEY")),
        ("ubuntu@10.0.0.9", 22, Secret("PROJECT KEY")),
        ("root@localhost", 10022, Secret("PROJECT KEY")),
    ]
    _, status = await gateway.get("/api/status")
    assert "KEY" not in json.dumps(status)


@pytest.mark.parametrize(
    ("change", "loc"),
    [
        ({"ssh_host": "-oProxyCommand=x@h"}, ["body", "ssh_host"]),
        ({"ssh_host": "u@-h"}, ["body", "ssh_host"]),
        ({"ssh_host": "u@h;touch /tmp/x"}, ["body", "ssh_host"]),
        ({"ssh_host": "u@h\n"}, ["body", "ssh_host"]),
        ({"ssh_host": "h"}, ["body", "ssh_host"]),
        ({"ssh_port": 0}, ["body", "ssh_port"]),
        ({"ssh_port": "many"}, ["body", "ssh_port"]),
        ({"app_port": None}, ["body", "app_port"]),
        ({"job_id": None}, ["body", "job_id"]),
        ({"job_id": "a/b"}, ["body", "job_id"]),
        ({"job_id": ".."}, ["body", "job_id"]),
        ({"job_id": "j" * 129}, ["body", "job_id"]),
        ({"ssh_proxy": {"hostname": "h", "username": "u"}}, ["body", "ssh_proxy", "port"]),
        (
            {"ssh_proxy": {"hostname": "$(x)", "username": "u", "port": 1}},
            ["body", "ssh_proxy", "hostname"],
        ),
    ],
)
async def test_replicas_that_are_422(gateway: Gateway, change: Any, loc: list[str]) -> None:
    await register(gateway)
    status, answer = await gateway.post(f"{MAIN}/run-1/replicas/register", REPLICA | change)
    assert status == 422, answer
    assert answer["detail"][0]["loc"] == loc
    assert "KEY" not in str(answer)


@pytest.mark.parametrize("project", ["%2e%2e", "a%2Fb", "a b", "x" * 65, "%00"])
async def test_projects_that_are_no_names(gateway: Gateway, project: str) -> None:
    status, answer = await gateway.post(f"/api/registry/{project}/services/register", SERVICE)
    assert status in (404, 422), answer
    assert (await gateway.get("/api/services/list"))[1] == {"services": []}


@pytest.mark.parametrize("name", ["..", "a/b", "a.b", "x" * 64, "", "-x", "x y", "\u00fc"])
async def test_runs_that_are_no_names(gateway: Gateway, name: str) -> None:
    status, answer = await register(gateway, run_name=name)
    assert (status, answer["detail"][0]["loc"]) == (422, ["body", "run_name"])


async def test_a_run_named_gateway(gateway: Gateway) -> None:
    entrypoints = "/api/registry/main/entrypoints/register"
    body = {"domain": "Gateway.Example.com", "https": False, "read_timeout": 60}
    assert await gateway.post(entrypoints, body) == OK
    status, answer = await register(gateway, run_name="gateway", domain="gateway.example.com")
    assert status == 400
    assert "gateway.example.com" in answer["detail"]
    assert "main" in answer["detail"]
    other = {"domain": "gateway.example.net", "https": False}
    assert await gateway.post(entrypoints, other) == OK  # the last one counts
    assert await register(gateway, run_name="gateway", domain="gateway.example.com") == OK
    # A server registers the entrypoint with each run that has a model, which must not fail because
    # of another run's name. The one that was first keeps its domain.
    assert await gateway.post(entrypoints, body) == OK
    assert (await gateway.post("/api/reload"))[0] == 200
    assert await gateway.post(f"{MAIN}/gateway/unregister") == OK
    status, answer = await register(gateway, run_name="gateway", domain="gateway.example.com")
    assert status == 400


async def test_the_authority_of_certificates(gateway: Gateway) -> None:
    body = {"acme_server": "https://ca.example/dir", "acme_eab_kid": "k", "acme_eab_hmac_key": "h"}
    assert await gateway.post("/api/config", body) == OK
    acme = gateway.control.parts.state.acme
    assert acme is not None
    assert (acme.server, acme.eab_hmac_key) == ("https://ca.example/dir", Secret("h"))
    status, answer = await gateway.post("/api/config", {"acme_server": "no url"})
    assert (status, answer["detail"][0]["loc"]) == (422, ["body", "acme_server"])
    assert gateway.control.parts.state.acme == acme
    assert await gateway.post("/api/config", {}) == OK  # replaced as a whole
    assert gateway.control.parts.state.acme.server is None


async def test_https_that_cannot_be_is_refused_and_leaves_nothing(gateway: Gateway) -> None:
    status, answer = await register(gateway, https=True)
    assert (status, isinstance(answer["detail"], str)) == (400, True)
    assert await register(gateway) == OK


async def test_slashes_at_the_end_are_led_away(gateway: Gateway) -> None:
    for path in ("/api/services/list/", "/api/services/list//", f"{MAIN}/register/"):
        async with gateway.http.get(gateway.base + path, allow_redirects=False) as answer:
            assert answer.status == 307
            assert answer.headers["Location"] == gateway.base + path.rstrip("/")
    assert await gateway.get("/nope/") == (404, {"detail": "Not Found"})
    query = "/api/services/list/?a=b"
    async with gateway.http.get(gateway.base + query, allow_redirects=False) as answer:
        assert answer.headers["Location"] == f"{gateway.base}/api/services/list?a=b"
    # A body is sent again, as 307 asks for.
    assert await gateway.post(f"{MAIN}/register/", SERVICE) == OK


async def test_it_describes_itself(gateway: Gateway) -> None:
    status, document = await gateway.get("/openapi.json")
    assert status == 200
    path = "/api/registry/{project}/services/register"
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    name = schema["$ref"].rpartition("/")[2]
    assert "run_name" in document["components"]["schemas"][name]["required"]
    status, page = await gateway.get("/docs")
    assert status == 200
    assert path in page


async def test_pages_of_this_machine_may_read(gateway: Gateway) -> None:
    local = {"Origin": "http://localhost:3000"}
    async with gateway.http.get(f"{gateway.base}/", headers=local) as answer:
        assert answer.headers["Access-Control-Allow-Origin"] == local["Origin"]
        assert answer.headers["Vary"] == "Origin"
    asking = local | {"Access-Control-Request-Method": "GET"}
    async with gateway.http.options(f"{gateway.base}/x", headers=asking) as answer:
        assert (answer.status, answer.headers["Access-Control-Max-Age"]) == (200, "600")
    for foreign in ("https://evil.example", "https://localhost.evil.example", "null", "http://["):
        async with gateway.http.get(f"{gateway.base}/", headers={"Origin": foreign}) as answer:
            assert "Access-Control-Allow-Origin" not in answer.headers


async def test_what_was_registered_comes_back() -> None:
    with tempfile.TemporaryDirectory(prefix="gw") as folder:
        home = Path(folder)
        async with running(home, FILE) as gateway:
            assert await register(gateway) == OK
            for run in ("run-1", "llama"):
                body = {"job_id": f"{run}-job", "url": "http://127.0.0.1:9"}
                assert await gateway.post(f"{MAIN}/{run}/replicas/register", body) == OK
            before = gateway.control.parts.state
        async with running(home, FILE) as gateway:
            after = gateway.control.parts.state
            assert after.services == before.services
            assert after.keys == before.keys == {"main": Secret("PROJECT KEY")}
            _, status = await gateway.get("/api/status")
            assert [len(service["replicas"]) for service in status["services"]] == [2, 1]


async def test_a_full_disk_is_507_and_changes_nothing(gateway: Gateway) -> None:
    folder = gateway.home / "state"
    blocked = folder / "registry.json.new"
    blocked.mkdir()  # whoever writes there cannot
    try:
        status, answer = await register(gateway)
        assert status == 507
        assert "cannot save the state" in answer["detail"]
        assert (await gateway.get("/api/services/list"))[1] == {"services": []}
        assert (await gateway.get("/healthz"))[0] == 200
    finally:
        blocked.rmdir()
    assert await register(gateway) == OK
