"""The real router decides, and the replica gets what the client put on the wire, byte for byte."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
import pytest_asyncio
from aiohttp import web
from fake_engine import Recorded
from waiting import until
from whole_gateway import Gateway
from whole_replicas import Replica
from whole_steering import Sent, Tap, tapped

pytestmark = pytest.mark.asyncio(loop_scope="module")

STEERED = pytest.mark.parametrize("service", ["steer", "auto"])
OWN = {"host", "connection", "content-length", "x-request-id"}
WORDS: Any = [{"role": "user", "content": "hello"}]
AUDIO = base64.b64encode(bytes(range(256)) * 40).decode()


@dataclass
class Whole:
    gateway: Gateway
    replicas: dict[str, Replica]
    tap: Tap

    def client(self, service: str, **options: Any) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            base_url=f"{self.tap.url}/v1",
            api_key="sk-client",
            default_headers={"Host": f"{service}.test", **options.pop("headers", {})},
            max_retries=0,
            timeout=10,
            **options,
        )

    async def compare(self, service: str, path: str) -> tuple[Sent, Recorded]:
        """The last request that a client said and what came of it, the same."""
        received = self.replicas[service].of(path)[-1]
        sent = self.tap.requests()[-1]
        assert sent.start == f"POST {path} HTTP/1.1"
        assert received.body == sent.body
        assert travelling(received.headers) == travelling(sent.fields)
        return sent, received

    async def way(self, received: Recorded) -> str:
        """By which way it went, as the access log tells."""
        (request_id,) = received.header("X-Request-Id")
        log = self.gateway.access_log
        await until(lambda: log.exists() and request_id in log.read_text())
        (line,) = [x for x in self.gateway.access_lines() if request_id in x]
        assert line.split()[3] in self.replicas
        return line.split()[4]


def travelling(fields: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """What is the client's own; the order of different names means nothing (RFC 9110, 5.3)."""
    found = [
        (name.lower(), value)
        for name, value in fields
        if name.lower() not in OWN and not name.lower().startswith(("x-forwarded-", "x-real-ip"))
    ]
    return sorted(found, key=lambda pair: pair[0])


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def whole(shared_home: Path) -> AsyncIterator[Whole]:
    modes = {
        "steer": {"type": "sglang", "mode": "steer"},
        "auto": "sglang",
        "through": {"type": "sglang", "mode": "through"},
    }
    replicas = {name: Replica(name, shared_home / f"{name}.sock") for name in modes}
    services = [
        {
            "name": name,
            "router": router,
            "debug_headers": name != "auto",
            "replicas": [{"id": name, "socket": str(replicas[name].path)}],
        }
        for name, router in modes.items()
    ]
    plain = {"id": "x", "object": "list", "data": [], "model": "m", "choices": [], "created": 0}
    for replica in replicas.values():
        await replica.start()
        for path in ("/v1/completions", "/v1/embeddings", "/v1/rerank"):
            replica.answers[path] = web.json_response(plain)
        replica.answers["/v1/responses"] = web.json_response({"id": "r", "object": "response"})
    try:
        async with Gateway(shared_home, services) as gateway, tapped(gateway) as tap:
            await asyncio.gather(*(gateway.router_pid(name) for name in modes))
            yield Whole(gateway, replicas, tap)
    finally:
        for replica in replicas.values():
            await replica.stop()


async def test_a_chat_with_everything_in_it(whole: Whole) -> None:
    async with whole.client("steer", headers={"X-Custom": "a,  b", "OpenAI-Beta": "x=1"}) as client:
        answer = await client.chat.completions.with_raw_response.create(
            model="m",
            messages=[
                {"role": "system", "content": "Sei höflich \u2028 🙂"},
                {"role": "user", "content": [{"type": "text", "text": "a\u0000b"}], "name": "u"},
            ],
            max_tokens=2,
            user="user-1",
            metadata={"run": "7"},
            seed=2**70,
            store=False,
            extra_body={
                "priority": 5,
                "cache_salt": "pepper",
                "rid": "r-1",
                "guided_json": {"type": "object"},
                "never_heard_of": {"nested": [1, None, 0.1, {"a": "b"}]},
            },
            extra_headers={"Idempotency-Key": "i-1", "X-SMG-Target-Worker": "mine"},
        )
    assert answer.parse().choices[0].message.content == "token 0 token 1 "
    assert answer.headers["x-gatewayd-replica"] == "steer"
    sent, received = await whole.compare("steer", "/v1/chat/completions")
    body = json.loads(sent.body)
    assert body["user"] == "user-1"
    assert body["never_heard_of"]["nested"][3] == {"a": "b"}
    assert received.header("User-Agent")[0].startswith("AsyncOpenAI/Python")
    assert received.header("X-Custom") == ["a,  b"]
    assert received.header("Authorization") == ["Bearer sk-client"]  # this service has no auth
    assert await whole.way(received) in ("steered", "fallback")  # seed is beyond its 64 bits


@STEERED
@pytest.mark.parametrize("stream", [False, True])
async def test_fields_that_the_router_would_drop(whole: Whole, service: str, stream: bool) -> None:
    async with whole.client(service) as client:
        answer = await client.chat.completions.create(
            model="m",
            messages=WORDS,
            max_tokens=3,
            stream=stream,
            user="user-1",
            metadata={"k": "v"},
            extra_body={"priority": 1, "unknown": [1, 2]},
        )
        if stream:
            text = [chunk.choices[0].delta.content async for chunk in answer]  # type: ignore[union-attr]
            assert text == ["token 0 ", "token 1 ", "token 2 "]
    _, received = await whole.compare(service, "/v1/chat/completions")
    assert await whole.way(received) == "steered"


async def test_through_it_the_same_request_loses_them(whole: Whole) -> None:
    """Which is why it is steered: the comparison can tell a difference."""
    async with whole.client("through") as client:
        await client.chat.completions.create(
            model="m", messages=WORDS, user="user-1", extra_body={"priority": 1}
        )
    received = whole.replicas["through"].of("/v1/chat/completions")[-1]
    assert received.body != whole.tap.requests()[-1].body
    assert "user" not in received.json
    assert await whole.way(received) == "through"


@STEERED
async def test_audio_that_the_router_refuses(whole: Whole, service: str) -> None:
    part = {"type": "input_audio", "input_audio": {"data": AUDIO, "format": "wav"}}
    messages: Any = [{"role": "user", "content": [part, {"type": "text", "text": "?"}]}]
    async with whole.client(service) as client:
        answer = await client.chat.completions.create(model="m", messages=messages, max_tokens=1)
    assert answer.choices[0].message.content == "token 0 "
    sent, received = await whole.compare(service, "/v1/chat/completions")
    assert AUDIO.encode() in sent.body
    assert await whole.way(received) == "fallback"


@STEERED
@pytest.mark.parametrize("prompt", [[1, 2, 3], [[1, 2], [3]], ["one", "two"], "text"])
async def test_prompts_of_every_kind(whole: Whole, service: str, prompt: Any) -> None:
    async with whole.client(service) as client:
        await client.completions.create(model="m", prompt=prompt, extra_body={"extra": "kept"})
    _, received = await whole.compare(service, "/v1/completions")
    text = isinstance(prompt, str) or isinstance(prompt[0], str)
    assert await whole.way(received) == ("steered" if text else "fallback")


async def test_other_paths_that_are_steered(whole: Whole) -> None:
    async with whole.client("steer") as client:
        with pytest.raises(ValueError, match="No embedding data"):  # the replica has none
            await client.embeddings.create(model="m", input=["a", "b"], user="u", dimensions=3)
        _, received = await whole.compare("steer", "/v1/embeddings")
        assert await whole.way(received) == "steered"
        await client.post(
            "/rerank",
            cast_to=object,
            body={"model": "m", "query": "q", "documents": ["a", "b"], "unknown": 1},
        )
        _, received = await whole.compare("steer", "/v1/rerank")
        assert await whole.way(received) == "steered"


async def test_the_engines_own_path(whole: Whole) -> None:
    body = b'{"text":"hi","sampling_params":{"max_new_tokens":2, "stop_regex":"x"},"custom":1}\n'
    async with aiohttp.ClientSession() as session:
        answer = await session.post(
            f"{whole.tap.url}/generate",
            data=body,
            headers={"Host": "steer.test", "Content-Type": "application/json"},
        )
        assert answer.status == 200
        assert (await answer.json())["text"] == "token 0 token 1 "
    sent, received = await whole.compare("steer", "/generate")
    assert sent.body == body
    assert await whole.way(received) == "steered"


@pytest.mark.parametrize("service", ["steer", "auto", "through"])
async def test_what_keeps_state_goes_through(whole: Whole, service: str) -> None:
    async with whole.client(service) as client:
        await client.responses.create(model="m", input="hi")
    received = whole.replicas[service].of("/v1/responses")[-1]
    assert await whole.way(received) == "through"


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", "application/json"),
        (b"not json at all \xff\x00", "application/json"),
        (b'{"messages":[]}', "application/json"),
        (b'{"model":"m","messages":[{"role":"robot","content":"x"}]}', "application/json"),
        (b'{"model":"m","messages":[{"role":"user","content":"x"}],"temperature":9}', "text/plain"),
        (b"--b\r\n\r\nx\r\n--b--", "multipart/form-data; boundary=b"),
        (b'{"model":"m","messages":[{"role":"user","content":"x"}]}' * 2, "application/json"),
    ],
)
async def test_nothing_is_refused_in_the_routers_name(
    whole: Whole, body: bytes, content_type: str
) -> None:
    """Only the replica says what it accepts; here it accepts everything."""
    replica = whole.replicas["steer"]
    path = "/v1/chat/completions"
    replica.answers[path] = web.json_response({"accepted": True})
    try:
        async with aiohttp.ClientSession() as session:
            answer = await session.post(
                f"{whole.tap.url}{path}",
                data=body,
                headers={"Host": "steer.test", "Content-Type": content_type},
            )
            assert (answer.status, await answer.json()) == (200, {"accepted": True})
    finally:
        del replica.answers[path]
    sent, received = await whole.compare("steer", path)
    assert sent.body == body
    assert received.header("Content-Type") == [content_type]


@pytest.mark.parametrize("service", ["steer", "through", "auto"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
async def test_who_answered_is_told_only_where_it_is_wanted(
    whole: Whole, service: str, path: str
) -> None:
    async with aiohttp.ClientSession() as session:
        answer = await session.post(
            f"{whole.gateway.url}{path}",
            json={"model": "m", "messages": WORDS, "input": "hi", "max_tokens": 1},
            headers={"Host": f"{service}.test"},
        )
        assert answer.status == 200
    wanted = [service] if service != "auto" else []
    assert answer.headers.getall("X-Gatewayd-Replica", []) == wanted
    assert not [name for name in answer.headers if name.lower().startswith(("x-smg", "x-ask"))]
    assert "X-Gatewayd-Failure" not in answer.headers


async def test_a_body_in_chunks_arrives_whole(whole: Whole) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b'{"model":"m","messages":[{"role":', b'"user","content":"', b"x" * 70_000):
            yield piece
            await asyncio.sleep(0.02)
        yield b'"}],"max_tokens":1,"user":"u"}'

    async with aiohttp.ClientSession() as session:
        answer = await session.post(
            f"{whole.gateway.url}/v1/chat/completions",
            data=pieces(),
            headers={"Host": "steer.test", "Content-Type": "application/json"},
        )
        assert answer.status == 200
    received = whole.replicas["steer"].of("/v1/chat/completions")[-1]
    assert received.body == b"".join([piece async for piece in pieces()])
    assert await whole.way(received) == "steered"


async def test_a_body_above_the_limit_is_not_asked_about(whole: Whole) -> None:
    body = json.dumps(
        {"model": "m", "messages": [{"role": "user", "content": "x" * (1 << 20)}]}
    ).encode()
    async with aiohttp.ClientSession() as session:
        answer = await session.post(
            f"{whole.tap.url}/v1/chat/completions",
            data=io.BytesIO(body),
            headers={"Host": "steer.test", "Content-Type": "application/json"},
        )
        assert answer.status == 200
    _, received = await whole.compare("steer", "/v1/chat/completions")
    assert await whole.way(received) == "fallback"


async def test_what_is_counted(whole: Whole) -> None:
    """Runs last: everything before it is in the counts."""
    lines = [x for x in whole.gateway.access_lines() if x.split()[2] == "steer"]
    ways = [line.split()[4] for line in lines]

    async def counted() -> bool:
        metrics = await whole.gateway.metrics()
        return all(
            metrics.total("gatewayd_requests_by_way_total", service="steer", way=way)
            == ways.count(way)
            for way in ("steered", "fallback", "through")
        )

    await until(counted, "the counts are the access log's")
    metrics = await whole.gateway.metrics()

    def outcome(name: str) -> float:
        return metrics.total("gatewayd_steering_total", service="steer", outcome=name)

    assert outcome("steered") == ways.count("steered") > 0
    assert outcome("refused") + outcome("body_limit") == ways.count("fallback") > 0
    assert outcome("body_limit") == 1
    assert metrics.total("gatewayd_steering_total", service="through") == 0
    assert metrics.total("gatewayd_router_fallbacks_total", service="through") == 0
    shown = await whole.gateway.service("steer")
    assert shown["requests"] == {
        "direct": 0, **{way: ways.count(way) for way in ("through", "steered", "fallback")}
    }  # fmt: skip
    assert shown["router"]["mode"] == "steer"
    assert (await whole.gateway.service("auto"))["router"]["mode"] == "steer"
    assert (await whole.gateway.service("through"))["router"]["mode"] == "through"
