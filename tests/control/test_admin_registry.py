"""Registry calls on the wire: bodies, statuses and texts that other programs rely on."""

from __future__ import annotations

import asyncio
import io
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from gateway import Gateway, running

OK = (200, {"status": "ok"})
SERVICES = "/api/registry/main/services"
REPLICAS = f"{SERVICES}/llama/replicas"
# What the registry's own server sends today, and what it sent while it had routers.
FULL = {
    "run_name": "Foo",
    "domain": "Foo.Example.com",
    "https": False,
    "auth": False,
    "client_max_body_size": 1048576,
    "options": {
        "openai": {"model": {"type": "chat", "name": "m", "format": "openai", "prefix": "/v1"}}
    },
    "ssh_private_key": "-----BEGIN",
    "id": "0" * 32,
    "rate_limits": [
        {"prefix": "/v1/", "key": {"type": "header", "header": "X-Key"}, "rps": 2.5, "burst": 3}
    ],
    "has_router_replica": False,
    "read_timeout": 120,
    "some_field_of_next_year": {"x": 1},
}


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gw") as folder:
        yield Path(folder)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_gateway(home: Path) -> AsyncIterator[Gateway]:
    listening = [socket.socket(socket.AF_UNIX) for _ in "abc"]
    for name, sock in zip("abc", listening, strict=True):
        sock.bind(str(home / f"{name}.sock"))
        sock.listen(64)
    async with running(home) as gateway:
        yield gateway
    for sock in listening:
        sock.close()


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module")
async def gateway(module_gateway: Gateway) -> AsyncIterator[Gateway]:
    """As it was before, for each test."""
    yield module_gateway
    _, listed = await module_gateway.get("/api/services/list")
    for entry in listed["services"]:
        path = f"/api/registry/{entry['project_name']}/services/{entry['run_name']}/unregister"
        assert await module_gateway.post(path) == OK
    for replica in (await shown(module_gateway, "llama"))["replicas"]:
        if replica["id"] != "a":
            await module_gateway.post(f"{REPLICAS}/{replica['id']}/unregister")


async def shown(gateway: Gateway, name: str) -> dict[str, Any]:
    _, status = await gateway.get("/api/status")
    found: dict[str, Any] = next(s for s in status["services"] if s["name"] == name)
    return found


async def test_the_version(gateway: Gateway) -> None:
    assert await gateway.get("/") == (200, {"version": "0.1.0"})


async def test_a_service_comes_and_goes(gateway: Gateway) -> None:
    assert await gateway.post(f"{SERVICES}/register", FULL) == OK
    foo = await shown(gateway, "foo")
    assert (foo["domains"], foo["model"], foo["origin"]) == (["foo.example.com"], "m", "api")
    service = gateway.control.parts.state.services["main/foo"]
    assert service.timeouts.idle == service.timeouts.first_byte == 120
    assert service.rate_limits[0].header == "x-key"
    assert service.client_max_body_size == 1048576
    assert await gateway.get("/api/services/list") == (
        200,
        {
            "services": [
                {"id": "0" * 32, "project_name": "main", "run_name": "foo", "replicas": []},
            ]
        },
    )
    assert await gateway.post(f"{SERVICES}/FOO/unregister") == OK
    assert await gateway.post(f"{SERVICES}/foo/unregister") == (
        400,
        {"detail": "Service main/foo is not registered, cannot unregister"},
    )


async def test_our_own_fields_of_a_service(gateway: Gateway) -> None:
    body = {
        "run_name": "own",
        "domain": ["own.example.com", "alias.example.com"],
        "model": "meta/llama",
        "client_max_body_size": "16MiB",
        "timeouts": {"first_byte": "10m", "idle": 5, "total": None},
        "allowed_paths": ["/v1/"],
        "balance": "round_robin",
        "cors": "openai",
        "router": None,
    }
    assert await gateway.post(f"{SERVICES}/register", body) == OK
    service = gateway.control.parts.state.services["main/own"]
    assert service.domains == ("own.example.com", "alias.example.com")
    assert service.client_max_body_size == 16 << 20
    assert (service.timeouts.first_byte, service.timeouts.idle) == (600.0, 5.0)
    assert service.allowed_paths == ("/v1/",)
    assert service.cors is not None


async def test_replicas_come_and_go(gateway: Gateway) -> None:
    home = gateway.home
    body = {"job_id": "J-1", "app_port": 80, "socket": f"{home}/b.sock"}
    assert await gateway.post("/api/registry/MAIN/services/LLAMA/replicas/register", body) == OK
    status, answer = await gateway.post(f"{REPLICAS}/register", {"url": "http://127.0.0.1:9"})
    first, second, third = (await shown(gateway, "llama"))["replicas"]
    assert (status, answer) == (200, {"status": "ok", "id": third["id"]})
    assert (first["id"], first["origin"]) == ("a", "file")
    assert (second["id"], second["address"]) == ("J-1", f"unix:{home}/b.sock")
    assert (third["address"], third["origin"]) == ("127.0.0.1:9", "api")
    assert await gateway.post(f"{REPLICAS}/register", body) == (
        400,
        {"detail": "Replica J-1 already exists in service main/llama"},
    )
    assert await gateway.post(f"{REPLICAS}/j-1/unregister") == (
        400,
        {"detail": "Replica j-1 does not exist in service main/llama, cannot unregister"},
    )
    assert await gateway.post(f"{REPLICAS}/J-1/unregister") == OK
    assert await gateway.post(f"{REPLICAS}/{third['id']}/unregister") == OK


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("unregister", {"drain": True}),
        ("unregister", {"drain": True, "timeout": "2s"}),
        ("unregister?drain=true&timeout=2s", None),
        ("drain", None),
        ("drain", {"timeout": 1.5}),
    ],
)
async def test_draining(gateway: Gateway, path: str, body: object) -> None:
    new = {"id": "b", "socket": f"{gateway.home}/b.sock"}
    assert (await gateway.post(f"{REPLICAS}/register", new))[0] == 200
    assert await gateway.post(f"{REPLICAS}/b/{path}", body) == (
        200,
        {"status": "ok", "drained": True, "running": 0},
    )
    assert len((await shown(gateway, "llama"))["replicas"]) == 1


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({"socket": "{home}/none.sock"}, "there is no socket {home}/none.sock"),
        ({"socket": "{home}/gateway.yaml"}, "{home}/gateway.yaml is not a socket"),
        ({"socket": "{home}"}, "{home} is not a socket"),
        ({"socket": "a.sock"}, "socket: expected"),
        ({"socket": "/" + "x" * 107}, "socket: socket path is 108 bytes long, at most 107 fit"),
        ({"url": "https://10.0.0.1:8000"}, "url: replicas are spoken to in plain HTTP"),
        ({"url": "http://10.0.0.1:8000/v1"}, "url: expected http://host:port without a path"),
        ({"url": "http://10.0.0.1"}, "url: expected http://host:port"),
        ({}, "a replica has exactly one of `socket`, `url` and `ssh_host`"),
        ({"socket": "/a", "url": "http://h:1"}, "a replica has exactly one of"),
        (
            {"job_id": "j", "ssh_host": "u@127.0.0.1", "ssh_port": 1, "app_port": 1},
            "Cannot register replica j in service main/llama: "
            "ssh: connect to host 127.0.0.1 port 1: Connection refused",
        ),
    ],
)
async def test_addresses_that_cannot_be(gateway: Gateway, body: Any, detail: str) -> None:
    home = str(gateway.home)
    filled = {key: str(value).replace("{home}", home) for key, value in body.items()}
    status, answer = await gateway.post(f"{REPLICAS}/register", filled)
    assert status == 400
    assert detail.replace("{home}", home) in answer["detail"]
    assert len((await shown(gateway, "llama"))["replicas"]) == 1


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"run_name": "llama"}, "Service main/llama is already registered"),
        ({"domain": "llama.example.com"}, "Domain name 'llama.example.com' is already taken by"),
        ({"https": True}, "This gateway serves no HTTPS: `listen.https` is not configured"),
        ({"router": "dreamt"}, "router: there is no router of type 'dreamt'"),
        (
            {"router": {"type": "sglang", "mode": "steer", "pd_disaggregation": True}},
            "router: mode: with `pd_disaggregation` each request goes to two replicas",
        ),
    ],
)
async def test_services_that_cannot_be(gateway: Gateway, change: Any, detail: str) -> None:
    status, answer = await gateway.post(f"{SERVICES}/register", FULL | change)
    assert (status, detail in answer["detail"]) == (400, True), answer
    assert (await gateway.get("/api/services/list"))[1] == {"services": []}


async def test_a_service_of_the_file_is_not_unregistered(gateway: Gateway) -> None:
    status, answer = await gateway.post(f"{SERVICES}/llama/unregister")
    assert status == 400
    assert "belongs to the configuration file" in answer["detail"]


@pytest.mark.parametrize(
    ("change", "loc", "kind"),
    [
        ({"run_name": 5}, ["body", "run_name"], "string_type"),
        ({"run_name": "a b"}, ["body", "run_name"], "string_pattern_mismatch"),
        ({"domain": "a b"}, ["body", "domain", 0], "value_error"),
        ({"auth": "perhaps"}, ["body", "auth"], "bool_parsing"),
        ({"client_max_body_size": -1}, ["body", "client_max_body_size"], "greater_than_equal"),
        (
            {"rate_limits": [{"prefix": "/", "key": {"type": "ip_address"}, "rps": 1}]},
            ["body", "rate_limits", 0, "burst"],
            "missing",
        ),
    ],
)
async def test_wrong_types_are_422(
    gateway: Gateway, change: Any, loc: list[Any], kind: str
) -> None:
    status, answer = await gateway.post(f"{SERVICES}/register", FULL | change)
    assert status == 422
    (fault,) = answer["detail"]
    assert (fault["type"], fault["loc"]) == (kind, loc)
    assert set(fault) == {"type", "loc", "msg", "input"}


async def test_private_keys_are_not_echoed(gateway: Gateway) -> None:
    status, answer = await gateway.post(f"{SERVICES}/register", {"ssh_private_key": "SECRET"})
    assert status == 422
    assert answer["detail"][0]["type"] == "missing"
    assert "SECRET" not in str(answer)


@pytest.mark.parametrize("raw", [b"{", b"no", b'{"run_name": "x"', b"\xff"])
async def test_what_is_not_json_is_422(gateway: Gateway, raw: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    status, answer = await gateway.post(f"{SERVICES}/register", data=raw, headers=headers)
    assert status == 422
    assert answer["detail"][0]["type"] == "json_invalid"


@pytest.mark.parametrize("body", [[], "x", 5, None])
async def test_json_that_is_no_object_is_422(gateway: Gateway, body: object) -> None:
    status, _ = await gateway.post(f"{SERVICES}/register", json=body)
    assert status == 422


async def test_unknown_paths_and_methods(gateway: Gateway) -> None:
    assert await gateway.get("/nope") == (404, {"detail": "Not Found"})
    assert await gateway.get(f"{SERVICES}/register") == (405, {"detail": "Method Not Allowed"})


async def test_a_body_that_is_too_large(gateway: Gateway) -> None:
    body = io.BytesIO(b'{"run_name": "' + b"x" * (2 << 20) + b'"}')
    headers = {"Content-Type": "application/json"}
    status, answer = await gateway.post(f"{SERVICES}/register", data=body, headers=headers)
    assert (status, "detail" in answer) == (413, True)


async def test_writes_are_json(gateway: Gateway) -> None:
    status, answer = await gateway.post(f"{SERVICES}/register", data={"run_name": "x"})
    assert (status, answer) == (415, {"detail": "Content-Type must be application/json"})


async def test_a_page_of_another_origin_cannot_write(gateway: Gateway) -> None:
    path = f"{REPLICAS}/a/unregister"
    headers = {"Origin": "https://evil.example"}
    status, _ = await gateway.post(path, headers=headers)
    assert status == 403
    assert len((await shown(gateway, "llama"))["replicas"]) == 1


async def test_many_clients_at_once(gateway: Gateway) -> None:
    async def client(n: int) -> None:
        path = f"{SERVICES}/s{n % 5}"
        for _ in range(8):
            body = FULL | {"run_name": f"s{n % 5}", "domain": f"s{n % 5}.example.com"}
            for call in (
                gateway.post(f"{SERVICES}/register", body),
                gateway.post(f"{path}/replicas/register", {"socket": f"{gateway.home}/c.sock"}),
                gateway.get("/api/services/list"),
                gateway.post(f"{path}/unregister"),
            ):
                status, answer = await call
                assert status in (200, 400), answer

    await asyncio.gather(*(client(n) for n in range(20)))


async def test_slow_clients_delay_nobody(gateway: Gateway) -> None:
    writers = []
    for _ in range(50):
        _, writer = await asyncio.open_unix_connection(str(gateway.home / "admin.sock"))
        writer.write(b"POST /api/registry/main/services/register HTTP/1.1\r\nHost: x\r\nCont")
        writers.append(writer)
    async with asyncio.timeout(30):
        assert (await gateway.get("/healthz"))[0] == 200
        new = {"id": "b", "socket": f"{gateway.home}/b.sock"}
        assert (await gateway.post(f"{REPLICAS}/register", new))[0] == 200
    for writer in writers:
        writer.close()
        await writer.wait_closed()


NO_PEER = "PD disaggregation requires internal IP for all replicas."
SSH = {"job_id": "j", "ssh_host": "u@h", "ssh_port": 22, "app_port": 8000}


@pytest.mark.parametrize(
    ("body", "address"),
    [
        (SSH | {"internal_ip": "10.0.0.5"}, "10.0.0.5:8000"),
        (SSH | {"internal_ip": "fd00::5"}, "[fd00::5]:8000"),
        ({"url": "http://10.0.0.5:8000"}, "10.0.0.5:8000"),
        (SSH, NO_PEER),
        (SSH | {"internal_ip": None}, NO_PEER),
        (SSH | {"internal_ip": ""}, NO_PEER),
        ({"socket": "/a"}, NO_PEER),
        ({"internal_ip": "10.0.0.5"}, "needs its `app_port`"),
        (SSH | {"internal_ip": "10.0.0.5", "app_port": 70000}, "url: "),
        (SSH | {"internal_ip": "a b"}, "url: "),
    ],
)
async def test_replicas_that_meet_each_other(gateway: Gateway, body: Any, address: str) -> None:
    router = {"type": "sglang", "pd_disaggregation": True}
    assert (await gateway.post(f"{SERVICES}/register", FULL | {"router": router}))[0] == 200
    status, answer = await gateway.post(f"{SERVICES}/foo/replicas/register", body)
    if status == 200:
        (replica,) = (await shown(gateway, "foo"))["replicas"]
        assert (replica["address"], replica["role"]) == (address, "unknown")
    else:
        assert status == 400
        assert address in answer["detail"]


async def test_whoever_runs_it_hears_of_a_limit_without_effect(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    by = {"key": {"type": "ip_address"}, "rps": 1, "burst": 0}
    limits = [by | {"prefix": prefix} for prefix in ("/v1/", "/v1/chat/")]
    service = {"run_name": "limited", "has_router_replica": True, "auth": False}
    body = service | {"domain": "limited.example.com", "rate_limits": limits}
    assert await gateway.post(f"{SERVICES}/register", body) == OK
    told = [record.getMessage() for record in caplog.records if "no effect" in record.getMessage()]
    assert len(told) == 1
    assert told[0].startswith("service main/limited: the rate limit of prefix /v1/chat/ has no")
