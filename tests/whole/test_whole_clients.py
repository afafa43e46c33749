"""What clients see: the `openai` package, curl and `websockets` against the running gateway,
straight to a replica, through edge, router, bridge and Unix socket, and steered by the router."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio
import websockets
from waiting import until
from whole_gateway import Gateway
from whole_replicas import Replica

pytestmark = pytest.mark.asyncio(loop_scope="module")

WORDS: Any = [{"role": "user", "content": "hello"}]
TOKEN = "sk-alice-1234"  # noqa: S105
THROUGH = {"type": "sglang", "mode": "through"}
STEER = {"type": "sglang", "mode": "steer"}
EVERY_WAY = pytest.mark.parametrize("service", ["direct", "through", "steered"])


@dataclass
class Whole:
    gateway: Gateway
    replicas: dict[str, Replica]

    def client(self, service: str, *, key: str = TOKEN, **options: Any) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(**self._options(service, key), **options)

    def sync_client(self, service: str, *, key: str = TOKEN) -> openai.OpenAI:
        return openai.OpenAI(**self._options(service, key))

    def _options(self, service: str, key: str) -> dict[str, Any]:
        return {
            "base_url": f"{self.gateway.url}/v1",
            "api_key": key,
            "default_headers": {"Host": f"{service}.test"},
            "max_retries": 0,
            "timeout": 10,
        }


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def whole(shared_home: Path) -> AsyncIterator[Whole]:
    replicas = {
        name: Replica(name, shared_home / f"{name}.sock")
        for name in ("direct", "through", "steered", "plain")
    }
    services = [
        {"name": "direct", "model": "m", "replicas": [f"unix:{replicas['direct'].path}"]},
        {"name": "through", "router": THROUGH, "replicas": [f"unix:{replicas['through'].path}"]},
        {"name": "steered", "router": STEER, "replicas": [f"unix:{replicas['steered'].path}"]},
        {"name": "plain", "auth": False, "replicas": [f"unix:{replicas['plain'].path}"]},
        {
            "name": "limited",
            "model": "m",
            "rate_limits": [{"prefix": "/v1/", "rps": 0.5, "burst": 1}],
            "replicas": [f"unix:{replicas['plain'].path}"],
        },
        {"name": "nobody", "model": "m", "replicas": []},
        {"name": "nobody-routed", "router": "sglang", "replicas": []},
    ]
    auth = {"type": "tokens", "tokens": [{"name": "alice", "token": TOKEN}]}
    for replica in replicas.values():
        await replica.start()
    try:
        async with Gateway(shared_home, services, auth=auth) as gateway:
            await gateway.router_pid("through")
            await gateway.router_pid("steered")
            yield Whole(gateway, replicas)
    finally:
        for replica in replicas.values():
            await replica.stop()


@EVERY_WAY
async def test_an_answer(whole: Whole, service: str) -> None:
    async with whole.client(service) as client:
        answer = await client.chat.completions.create(model="m", messages=WORDS, max_tokens=3)
    assert answer.choices[0].message.content == "token 0 token 1 token 2 "
    assert answer._request_id
    recorded = whole.replicas[service].inferences[-1]
    assert TOKEN not in str(recorded.headers)
    assert recorded.header("x-request-id") == [answer._request_id]
    await until(lambda: answer._request_id in whole.gateway.access_log.read_text())
    (line,) = [x for x in whole.gateway.access_lines() if str(answer._request_id) in x]
    assert line.split()[4] == service  # the way it went


@EVERY_WAY
async def test_models(whole: Whole, service: str) -> None:
    async with whole.client(service) as client:
        assert [model.id async for model in client.models.list()] == ["fake-model"]


@EVERY_WAY
async def test_the_blocking_client(whole: Whole, service: str) -> None:
    def talk() -> tuple[str | None, list[str | None]]:
        with whole.sync_client(service) as client:
            answer = client.chat.completions.create(model="m", messages=WORDS, max_tokens=2)
            stream = client.chat.completions.create(
                model="m", messages=WORDS, max_tokens=3, stream=True
            )
            return answer.choices[0].message.content, [
                chunk.choices[0].delta.content for chunk in stream
            ]

    whole_answer, pieces = await asyncio.to_thread(talk)
    assert whole_answer == "token 0 token 1 "
    assert pieces == ["token 0 ", "token 1 ", "token 2 "]


@EVERY_WAY
async def test_each_token_arrives_before_the_next_is_made(whole: Whole, service: str) -> None:
    replica = whole.replicas[service]
    replica.stepped = True
    delays = []
    try:
        async with asyncio.timeout(30), whole.client(service) as client:
            stream = await client.chat.completions.create(
                model="m", messages=WORDS, max_tokens=20, stream=True
            )
            for number in range(20):
                replica.step()
                made = time.monotonic()
                chunk = await anext(stream)
                delays.append(time.monotonic() - made)
                assert chunk.choices[0].delta.content == f"token {number} "
            assert [chunk async for chunk in stream] == []
    finally:
        replica.stepped = False
    assert statistics.median(delays) < 0.05
    assert replica.inferences[-1].outcome == "completed"


@EVERY_WAY
async def test_the_head_of_a_stream_arrives_before_its_first_token(
    whole: Whole, service: str
) -> None:
    replica = whole.replicas[service]
    replica.stepped = True
    try:
        async with (
            asyncio.timeout(30),
            whole.client(service) as client,
            client.chat.completions.with_streaming_response.create(
                model="m", messages=WORDS, max_tokens=1, stream=True
            ) as response,
        ):
            assert response.headers["content-type"] == "text/event-stream"
            assert response.headers["x-accel-buffering"] == "no"
            assert "access-control-allow-origin" not in response.headers
            replica.step()
            lines = [line async for line in response.iter_lines() if line]
    finally:
        replica.stepped = False
    assert json.loads(lines[0].removeprefix("data: "))["choices"][0]["delta"]["content"]
    assert lines[-1] == "data: [DONE]"


@EVERY_WAY
async def test_a_wrong_key(whole: Whole, service: str) -> None:
    before = len(whole.replicas[service].requests)
    async with whole.client(service, key="sk-wrong") as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.chat.completions.create(model="m", messages=WORDS)
    assert caught.value.code == "invalid_api_key"
    assert caught.value.type == "authentication_error"
    assert caught.value.response.headers["www-authenticate"] == "Bearer"
    assert len(whole.replicas[service].requests) == before


async def test_too_many_requests(whole: Whole) -> None:
    async with whole.client("limited") as client:
        for _ in range(2):
            await client.chat.completions.create(model="m", messages=WORDS)
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model="m", messages=WORDS)
    assert caught.value.code == "rate_limit_exceeded"
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 2
    # The package itself waits as long as it was told, and then succeeds.
    async with whole.client("limited") as client:
        patient = client.with_options(max_retries=1)
        began = time.monotonic()
        await patient.chat.completions.create(model="m", messages=WORDS)
        assert time.monotonic() - began < 4


@pytest.mark.parametrize("service", ["nobody", "nobody-routed"])
async def test_no_replica(whole: Whole, service: str) -> None:
    async with whole.client(service) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(model="m", messages=WORDS)
    assert caught.value.status_code == 503
    assert caught.value.code == "no_ready_replica"
    assert int(caught.value.response.headers["retry-after"]) >= 1


async def test_what_is_not_there(whole: Whole) -> None:
    async with whole.client("absent") as client:
        with pytest.raises(openai.NotFoundError) as caught:
            await client.chat.completions.create(model="m", messages=WORDS)
        assert caught.value.code == "not_found"
    async with whole.client("direct") as client:
        with pytest.raises(openai.NotFoundError):  # in the replica's own words
            await client.files.list()


@EVERY_WAY
async def test_a_client_that_stops_listening(whole: Whole, service: str) -> None:
    replica = whole.replicas[service]
    replica.stepped = True
    try:
        async with asyncio.timeout(30), whole.client(service) as client:
            stream = await client.chat.completions.create(
                model="m", messages=WORDS, max_tokens=1000, stream=True
            )
            replica.step(2)
            await anext(stream)
            await stream.close()
            left = time.monotonic()
            recorded = replica.inferences[-1]
            while recorded.outcome == "running":
                replica.step()  # through a router, the next token tells
                await asyncio.sleep(0.02)
            assert time.monotonic() - left < 1
            assert recorded.outcome == "client gone"
    finally:
        replica.stepped = False


# --- other clients


async def run(*argv: str) -> str:
    process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(30):
        out, _ = await process.communicate()
    assert process.returncode == 0, argv
    return out.decode()


@pytest.mark.needs("curl")
@EVERY_WAY
async def test_curl(whole: Whole, service: str) -> None:
    url = f"http://{service}.test:{whole.gateway.port}/v1/chat/completions"
    body = '{"model": "m", "stream": true, "messages": [{"role": "user", "content": "Hi"}]}'
    out = await run(
        *("curl", "-sSN", "--fail-with-body", "--resolve", f"*:{whole.gateway.port}:127.0.0.1"),
        *("-H", f"Authorization: Bearer {TOKEN}", "-H", "Content-Type: application/json"),
        *("-d", body, url),
    )
    events = [line for line in out.splitlines() if line]
    assert len(events) == 5
    assert events[-1] == "data: [DONE]"


@pytest.mark.needs("curl")
async def test_curl_uploads_and_downloads_what_it_was_given(
    whole: Whole, shared_home: Path
) -> None:
    sent = shared_home / "sent"
    sent.write_bytes(bytes(range(256)) * 40_000)
    status = await run(
        *("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "-T", str(sent)),
        *("-H", "Host: plain.test", f"{whole.gateway.url}/upload"),
    )
    assert status == "404"  # the replica has no such path, but it has read the whole body
    assert whole.replicas["plain"].of("/upload")[-1].body == sent.read_bytes()


async def test_a_websocket(whole: Whole) -> None:
    async with (
        asyncio.timeout(30),
        websockets.connect(
            f"ws://plain.test:{whole.gateway.port}/echo",
            host="127.0.0.1",
            port=whole.gateway.port,
            proxy=None,
        ) as socket,
    ):
        for message in ("hello", b"\x00\xff" * 50_000, "", "ü" * 1000):
            await socket.send(message)
            assert await socket.recv() == message
        assert await (await socket.ping()) >= 0
    assert socket.close_code == 1000


async def test_a_keep_alive_connection_serves_several_services(whole: Whole) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", whole.gateway.port)
    for host, expected in (("plain", b"plain"), ("absent", b""), ("plain", b"plain")):
        writer.write(f"GET /who HTTP/1.1\r\nHost: {host}.test\r\n\r\n".encode())
        async with asyncio.timeout(30):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            body = await reader.readexactly(length)
        if expected:
            assert body == expected
        else:
            assert b" 404 " in head.split(b"\r\n")[0] + b" "
    writer.close()
    await writer.wait_closed()
