"""What never gets behind the edge: administration paths of routers and replicas, in any spelling,
headers that steer a router, and what of our inside an answer may tell. And no way out: no request
of a router or gateway to a model hub or a proxy."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import aiohttp.web
import pytest
import pytest_asyncio
from waiting import until
from whole_gateway import INTERNAL, Gateway
from whole_outside import Trap, trap
from whole_replicas import Replica

pytestmark = pytest.mark.asyncio(loop_scope="module")

THROUGH = {"type": "sglang", "mode": "through"}
STEER = {"type": "sglang", "mode": "steer"}
ROUTED = ("through", "steered")
EVERY_ROUTED = pytest.mark.parametrize("service", ROUTED)
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


@dataclass
class Whole:
    gateway: Gateway
    replicas: dict[str, Replica]
    session: aiohttp.ClientSession
    outside: Trap

    async def raw(self, service: str, head: str, body: bytes = b"") -> tuple[int, bytes, bytes]:
        """Status, head and body of the answer to exactly these bytes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.gateway.port)
        try:
            async with asyncio.timeout(30):
                length = f"Content-Length: {len(body)}\r\n" if body else ""
                request = f"{head}\r\nHost: {service}.test\r\n{length}Connection: close\r\n\r\n"
                writer.write(request.encode() + body)
                answer = await reader.read()
        finally:
            writer.close()
            await writer.wait_closed()
        answered, _, rest = answer.partition(b"\r\n\r\n")
        return int(answered.split()[1]), answered, rest


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def whole(shared_home: Path) -> AsyncIterator[Whole]:
    replicas = {name: Replica(name, shared_home / f"{name}.sock") for name in (*ROUTED, "open")}
    services = [
        {"name": "through", "router": THROUGH, "replicas": [f"unix:{replicas['through'].path}"]},
        {"name": "steered", "router": STEER, "replicas": [f"unix:{replicas['steered'].path}"]},
        {
            "name": "open",
            "router": STEER,
            "allowed_paths": ["/v1/", "/health", "/tokenize"],
            "replicas": [f"unix:{replicas['open'].path}"],
        },
    ]
    for replica in replicas.values():
        await replica.start()
    with trap() as outside:
        there = f"http://127.0.0.1:{outside.port}"
        proxies = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY")
        env = dict.fromkeys(proxies, there) | {"HF_ENDPOINT": there}
        async with (
            Gateway(shared_home, services, env=env, workers=1) as gateway,
            aiohttp.ClientSession() as session,
        ):
            for name in replicas:
                await gateway.router_pid(name)
            yield Whole(gateway, replicas, session, outside)
        assert outside.caught == []  # in all that the tests of this module did
    for replica in replicas.values():
        await replica.stop()


FORBIDDEN = [
    "POST /flush_cache",
    "GET /v1/tokenizers",
    "POST /v1/tokenizers",
    "DELETE /v1/tokenizers/any",
    "GET /workers",
    "POST /workers",
    "DELETE /workers/0f8fad5b-d9cb-469f-a165-70867728950e",
    "GET /get_loads",
    "GET /get_server_info",
    "GET /engine_metrics",
    "GET /metrics",
    "POST /wasm",
    "GET /health_generate",
    "POST /abort_request",
    "POST /update_weights_from_disk",
    "GET /",
    "GET /v1",
    "POST /v1/../flush_cache",
    "POST /v1/%2e%2e/flush_cache",
    "POST /v1/%2E%2E/flush_cache",
    "POST /v1/.%2e/flush_cache",
    "POST /v1/..%2fflush_cache",
    "POST /v1/%2e%2e%2fflush_cache",
    "POST /v1/%252e%252e/flush_cache",
    "POST /v1/..\\flush_cache",
    "POST /v1\\..\\flush_cache",
    "POST /v1/%5c../flush_cache",
    "POST /v1//../../flush_cache",
    "POST //flush_cache",
    "POST /./flush_cache",
    "POST /%66lush_cache",
    "POST /flush_cache?x=/v1/models",
    "POST /v1/chat/completions/../../../flush_cache",
    "POST /v1/%00/../flush_cache",
    "POST /chat/completions/../../flush_cache",
    "POST /generate/../flush_cache",
    "POST /generate/",
    "POST /V1/models",
    "POST *",
    "POST http://through.test/flush_cache",
    "POST http://127.0.0.1:1/v1/models",
]


@EVERY_ROUTED
async def test_no_administration_path_is_reached(whole: Whole, service: str) -> None:
    replica = whole.replicas[service]
    before = len(replica.requests)
    port = (await whole.gateway.service(service))["router"]["metrics"].rpartition(":")[2]
    counted = await router_requests(whole.session, port)
    for line in FORBIDDEN:
        line = line.replace("through.test", f"{service}.test")
        status, _, body = await whole.raw(service, f"{line} HTTP/1.1")
        assert status in (400, 403), (line, status, body)
        assert not INTERNAL.search(body), (line, body)
    assert [r.path for r in replica.requests[before:]] == []
    now = await router_requests(whole.session, port)
    # It is asked for its liveness and its targets all the time, by us.
    ours = ("/liveness", "/workers")
    assert {k: v for k, v in now.items() if k not in ours} == {
        k: v for k, v in counted.items() if k not in ours
    }


async def router_requests(session: aiohttp.ClientSession, port: str) -> dict[str, float]:
    """What a router has been asked, by path, as it counts itself."""
    async with session.get(f"http://127.0.0.1:{port}/") as response:
        text = await response.text()
    counts: dict[str, float] = {}
    for line in text.splitlines():
        if line.startswith("smg_http_requests_total{"):
            path = line.split('path="')[1].split('"')[0]
            counts[path] = counts.get(path, 0) + float(line.rpartition(" ")[2])
    return counts


@EVERY_ROUTED
@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "//v1//chat/completions", "/v1/./chat/completions"]
)
async def test_what_is_allowed_gets_there(whole: Whole, service: str, path: str) -> None:
    status, _, body = await whole.raw(
        service,
        f"POST {path} HTTP/1.1\r\nContent-Type: application/json",
        json.dumps(CHAT).encode(),
    )
    # The raw path travels on; the router knows one spelling, a replica may know more.
    assert status == (200 if path == "/v1/chat/completions" else 404), body


async def test_generate_is_allowed(whole: Whole) -> None:
    for service in ROUTED:
        async with whole.session.post(
            f"{whole.gateway.url}/generate",
            json={"text": "hi", "sampling_params": {"max_new_tokens": 2}},
            headers={"Host": f"{service}.test"},
        ) as response:
            assert response.status == 200
            assert (await response.json())["text"] == "token 0 token 1 "


async def test_a_list_of_ones_own_replaces_the_routers(whole: Whole) -> None:
    async def status(path: str) -> int:
        async with whole.session.get(
            f"{whole.gateway.url}{path}", headers={"Host": "open.test"}
        ) as response:
            return response.status

    assert await status("/v1/models") == 200
    assert await status("/generate") == 403
    assert await status("/workers") == 403


@EVERY_ROUTED
async def test_headers_that_steer_or_tell_do_not_pass(whole: Whole, service: str) -> None:
    sent = {
        "Host": f"{service}.test",
        "Authorization": "Bearer sk-client-secret",
        "X-SMG-Routing-Key": "me",
        "X-SMG-Target-Worker": "http://127.0.0.1:1",
        "x-smg-anything": "1",
        "X-Request-Id-Gw": "forged",
        "X-Gatewayd-Replica": "forged",
        "X-Gatewayd-Failure": "connect",
        "X-Forwarded-For": "203.0.113.9",
        "X-Real-IP": "203.0.113.9",
        "Forwarded": "for=203.0.113.9",
    }
    asked = CHAT | {"messages": [{"role": "user", "content": "headers"}]}
    async with whole.session.post(
        f"{whole.gateway.url}/v1/chat/completions", json=asked, headers=sent
    ) as response:
        assert response.status == 200
        answered = {name.lower() for name in response.headers}
    (recorded,) = whole.replicas[service].of("/v1/chat/completions")[-1:]
    assert json.loads(recorded.body)["messages"][0]["content"] == "headers"
    if (
        service == "through"
    ):  # steered, the replica gets what the client said, and the router does not
        names = {name.lower() for name, _ in recorded.headers}
        assert not [n for n in names if n.startswith(("x-smg-", "x-request-id-"))]
        assert "sk-client-secret" not in str(recorded.headers)
        assert "forged" not in str(recorded.headers)
    assert "203.0.113.9" not in str(recorded.headers)
    told = ("x-smg-", "x-gatewayd-", "access-control-", "vary", "x-request-id-")
    assert not [n for n in answered if n.startswith(told)], answered


@EVERY_ROUTED
async def test_errors_tell_nothing_of_the_inside(whole: Whole, service: str) -> None:
    """Of a replica's answer the client gets its own words; of ours none about addresses."""
    replica = whole.replicas[service]
    url = f"{whole.gateway.url}/v1/chat/completions"
    host = {"Host": f"{service}.test"}
    for status in (400, 404, 422, 429, 500, 503):
        said = json.dumps({"error": {"message": f"as the replica said {status}"}}).encode()
        replica.answers["/v1/chat/completions"] = aiohttp.web.Response(
            body=said, status=status, headers={"Content-Type": "application/json"}
        )
        async with whole.session.post(url, json=CHAT, headers=host) as response:
            body = await response.read()
            assert response.status == status
            assert body == said
    # A redirect is followed nowhere: the router would carry the body to any address.
    target = f"http://127.0.0.1:{whole.outside.port}/steal"
    replica.answers["/v1/chat/completions"] = aiohttp.web.Response(
        status=307, headers={"Location": target}
    )
    async with whole.session.post(url, json=CHAT, headers=host, allow_redirects=False) as response:
        body = await response.read()
        assert response.status in (502, 307)
        if service == "through":
            assert response.status == 502
        assert not INTERNAL.search(body)
    replica.answers.clear()
    # And afterwards all is well: no answer of a replica has tripped anything.
    for _ in range(3):
        async with whole.session.post(url, json=CHAT, headers=host) as response:
            assert response.status == 200


@EVERY_ROUTED
async def test_a_clients_mistakes_harm_nobody_else(whole: Whole, service: str) -> None:
    """Ten bad requests in a row used to take a replica out for a minute."""
    replica = whole.replicas[service]
    replica.answers["/v1/chat/completions"] = aiohttp.web.Response(body=b"{}", status=400)
    url = f"{whole.gateway.url}/v1/chat/completions"
    host = {"Host": f"{service}.test"}
    for _ in range(15):
        async with whole.session.post(url, json=CHAT, headers=host) as response:
            assert response.status == 400
    del replica.answers["/v1/chat/completions"]
    async with whole.session.post(url, json=CHAT, headers=host) as response:
        assert response.status == 200


async def test_the_admin_address_is_not_behind_the_public_one(whole: Whole) -> None:
    for host in ("localhost", "gateway", "127.0.0.1", "through.test"):
        for path in ("/api/status", "/metrics", "/healthz", "/api/registry/main/services/register"):
            async with whole.session.get(
                whole.gateway.url + path, headers={"Host": host}
            ) as response:
                assert response.status in (403, 404), (host, path)


async def test_new_targets_ask_nobody_outside(whole: Whole) -> None:
    """A registration is when a router would fetch a tokenizer."""
    replica = whole.replicas["through"]
    assert replica.path is not None
    for number in range(3):
        await whole.gateway.add("through", f"more{number}", replica.path)
    await whole.gateway.router_pid("through")
    for number in range(3):
        await whole.gateway.remove("through", f"more{number}")
    await until(lambda: whole.gateway.router_pid("through"))
    assert whole.outside.caught == []
    logs = [*(whole.gateway.home / "state" / "router_logs").rglob("*.*")]
    assert len(logs) >= len(ROUTED)
    assert not any("huggingface" in log.read_text().lower() for log in logs)
