"""The model endpoint of the running gateway, as the `openai` package sees it: services that speak
OpenAI's API, directly and behind a router, and one that speaks TGI's own."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio
from aiohttp import web
from waiting import until
from whole_gateway import Gateway
from whole_replicas import Replica

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOKEN = "sk-alice-1234"  # noqa: S105
WORDS: Any = [{"role": "user", "content": "hello"}]
TEMPLATE = """\
{% for message in messages %}
<|{{ message.role }}|>
{{ message.content + eos_token }}
{% endfor %}
<|assistant|>
"""


@dataclass
class TextGeneration:
    """A server with TGI's API that says what it was asked, word by word."""

    path: Path
    asked: list[dict[str, Any]] = field(default_factory=list)

    async def start(self) -> None:
        app = web.Application()
        app.router.add_post("/generate", self._generate)
        app.router.add_post("/generate_stream", self._generate_stream)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.UnixSite(self._runner, str(self.path)).start()

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _words(self, request: web.Request) -> list[str]:
        asked = await request.json()
        self.asked.append(asked)
        return [f"{word} " for word in asked["inputs"].split()] + ["</s>"]

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        words = await self._words(request)
        if self.asked[-1]["parameters"].get("max_new_tokens") == 0:
            refusal = {"error": "`max_new_tokens` must be positive", "error_type": "validation"}
            return web.json_response(refusal, status=422)
        details = {
            "finish_reason": "eos_token",
            "generated_tokens": len(words),
            "prefill": [{"id": 1, "text": "x"}] * 5,
            "seed": 1,
        }
        return web.json_response({"generated_text": "".join(words), "details": details})

    async def _generate_stream(self, request: web.Request) -> web.StreamResponse:
        words = await self._words(request)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for word in words:
            last = word == "</s>"
            details = {"finish_reason": "eos_token", "generated_tokens": len(words)}
            event = {
                "token": {"id": 1, "text": word, "logprob": 0.0, "special": last},
                "generated_text": "".join(words) if last else None,
                "details": details if last else None,
            }
            await response.write(b"data:%b\n\n" % json.dumps(event).encode())
        return response


@dataclass
class Whole:
    gateway: Gateway
    engines: dict[str, Replica]
    tgi: TextGeneration

    def client(
        self, *, key: str = TOKEN, v1: bool = True, host: str = "gateway.test", **options: Any
    ) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            base_url=f"{self.gateway.url}/v1" if v1 else self.gateway.url,
            api_key=key,
            default_headers={"Host": host},
            max_retries=0,
            timeout=10,
            **options,
        )


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def whole(shared_home: Path) -> AsyncIterator[Whole]:
    engines = {
        name: Replica(name, shared_home / f"{name}.sock") for name in ("llama", "qwen", "later")
    }
    tgi = TextGeneration(shared_home / "tgi.sock")
    for server in (*engines.values(), tgi):
        await server.start()
    services: list[dict[str, Any]] = [
        {
            "name": "llama",
            "auth": False,
            "model": "meta-llama/Llama-3.2-3B-Instruct",
            "rate_limits": [{"prefix": "/v1/completions", "rps": 0.1}],
            "replicas": [f"unix:{engines['llama'].path}"],
        },
        {
            "name": "qwen",
            "model": "qwen",
            "router": "sglang",
            "replicas": [f"unix:{engines['qwen'].path}"],
        },
        {
            "name": "zephyr",
            "model": {
                "name": "zephyr",
                "format": "tgi",
                "chat_template": TEMPLATE,
                "eos_token": "</s>",
            },
            "replicas": [f"unix:{tgi.path}"],
        },
        {"name": "empty", "model": "empty", "replicas": []},
    ]
    auth = {"type": "tokens", "tokens": [{"name": "alice", "token": TOKEN}]}
    endpoint = {"domain": "gateway.test"}
    try:
        async with Gateway(shared_home, services, auth=auth, model_endpoint=endpoint) as gateway:
            await gateway.router_pid("qwen")
            yield Whole(gateway, engines, tgi)
    finally:
        for server in (*engines.values(), tgi):
            await server.stop()


LLAMA = "meta-llama/Llama-3.2-3B-Instruct"


@pytest.mark.parametrize("v1", [True, False])
async def test_the_models_of_all_services(whole: Whole, v1: bool) -> None:
    async with whole.client(v1=v1) as client:
        models = [model async for model in client.models.list()]
        assert [model.id for model in models] == ["empty", LLAMA, "qwen", "zephyr"]
        assert {model.owned_by for model in models} == {"main"}
        assert all(model.created > 1_700_000_000 for model in models)
        assert (await client.models.retrieve(LLAMA)).id == LLAMA
        with pytest.raises(openai.NotFoundError) as error:
            await client.models.retrieve("gpt-9")
        assert error.value.code == "model_not_found"


@pytest.mark.parametrize("v1", [True, False])
@pytest.mark.parametrize("model", [LLAMA, "qwen"])
async def test_a_chat_goes_to_the_service_of_its_model(whole: Whole, model: str, v1: bool) -> None:
    async with whole.client(v1=v1) as client:
        answer = await client.chat.completions.create(model=model, messages=WORDS, max_tokens=3)
        stream = await client.chat.completions.create(
            model=model, messages=WORDS, max_tokens=3, stream=True
        )
        pieces = [chunk.choices[0].delta.content async for chunk in stream]
    assert answer.choices[0].message.content == "token 0 token 1 token 2 "
    assert pieces == ["token 0 ", "token 1 ", "token 2 "]
    name = "llama" if model == LLAMA else "qwen"
    recorded = whole.engines[name].inferences[-1]
    assert recorded.path == "/v1/chat/completions"
    assert TOKEN not in str(recorded.headers)
    way = "direct" if model == LLAMA else "steered"
    assert await whole.gateway.ways([str(answer._request_id)]) == [way]
    (line,) = [x for x in whole.gateway.access_lines() if str(answer._request_id) in x]
    assert name in line.split()


async def test_every_byte_of_a_body_arrives_as_it_was_sent(whole: Whole) -> None:
    sent: list[bytes] = []

    async def note(request: Any) -> None:
        sent.append(request.content)

    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    http = openai.DefaultAsyncHttpxClient(event_hooks={"request": [note]})
    async with whole.client(http_client=http) as client:
        await client.chat.completions.create(
            model=LLAMA,
            messages=[
                {"role": "user", "content": [{"type": "text", "text": "wäs?"}, image]},
                {"role": "assistant", "tool_calls": [], "content": None},
            ],
            tools=[{"type": "function", "function": {"name": "f", "parameters": {"a": 1.50}}}],
            max_completion_tokens=2,
            stream_options={"include_usage": True},
            stream=True,
            extra_body={"top_k": 5, "chat_template_kwargs": {"enable_thinking": False}},
        )
    assert whole.engines["llama"].inferences[-1].body == sent[-1]


async def test_embeddings_and_responses(whole: Whole) -> None:
    engine = whole.engines["llama"]
    embedding = {"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}
    usage = {"prompt_tokens": 1, "total_tokens": 1}
    engine.answers["/v1/embeddings"] = web.json_response(
        {"object": "list", "data": [embedding], "model": "x", "usage": usage}
    )
    text = {"type": "output_text", "text": "hi", "annotations": []}
    output = {"type": "message", "id": "m", "role": "assistant", "status": "completed"}
    engine.answers["/v1/responses"] = web.json_response(
        {"id": "r", "object": "response", "output": [{**output, "content": [text]}]}
    )
    async with whole.client() as client:
        vectors = await client.embeddings.create(model=LLAMA, input="x", encoding_format="float")
        assert vectors.data[0].embedding == [0.5, 0.25]
        response = await client.responses.create(model=LLAMA, input="hello")
        assert response.output_text == "hi"


async def test_completions_count_at_the_service(whole: Whole) -> None:
    completion = {"object": "text_completion", "choices": [{"text": "hi", "index": 0}]}
    whole.engines["llama"].answers["/v1/completions"] = web.json_response(completion)
    async with whole.client() as client:
        answer = await client.completions.create(model=LLAMA, prompt="hello", max_tokens=2)
        assert answer.choices[0].text
        with pytest.raises(openai.RateLimitError) as limited:
            await client.completions.create(model=LLAMA, prompt="hello", max_tokens=2)
        assert limited.value.code == "rate_limit_exceeded"

    async def counted() -> bool:
        metrics = await whole.gateway.metrics()
        limited = {"service": "llama", "reason": "rate_limit"}
        return (
            metrics.total("gatewayd_rejections_total", **limited) == 1
            and metrics.total("gatewayd_requests_total", service="llama", code="429") == 1
        )

    await until(counted, "counted at the service")


async def test_refusals(whole: Whole) -> None:
    async with whole.client(key="wrong") as client:
        with pytest.raises(openai.AuthenticationError) as error:
            await client.chat.completions.create(model=LLAMA, messages=WORDS)
        assert error.value.code == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()
    async with whole.client() as client:
        with pytest.raises(openai.NotFoundError, match="Model x not found in project main"):
            await client.chat.completions.create(model="x", messages=WORDS)
        with pytest.raises(openai.InternalServerError) as unavailable:
            await client.chat.completions.create(model="empty", messages=WORDS)
        assert unavailable.value.status_code == 503
        assert unavailable.value.code == "no_ready_replica"


async def test_a_registered_model_comes_and_goes(whole: Whole) -> None:
    gateway = whole.gateway
    model = {"type": "chat", "name": "later", "format": "openai", "prefix": "/v1"}
    options = {"openai": {"model": model}}
    body = {"run_name": "later", "domain": "later.test", "auth": False, "options": options}
    await gateway.change("register", body)
    entrypoint = {"domain": "models.later.test", "https": False}
    path = "/api/registry/main/entrypoints/register"
    assert await gateway.call("POST", path, entrypoint) == (200, {"status": "ok"})
    async with whole.client(host="models.later.test") as client:
        assert "later" in [model.id async for model in client.models.list()]
    async with whole.client() as client:
        await gateway.add("later", "a", str(whole.engines["later"].path))
        answer = await client.chat.completions.create(model="later", messages=WORDS, max_tokens=1)
        assert answer.choices[0].message.content == "token 0 "
        await gateway.change("later/unregister")
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="later", messages=WORDS)


# --- text generation


async def test_a_chat_with_text_generation(whole: Whole) -> None:
    said = ["<|user|>", "hello</s>", "<|assistant|>"]
    async with whole.client() as client:
        answer = await client.chat.completions.create(
            model="zephyr", messages=WORDS, max_tokens=9, stop=["X"], temperature=0.5, seed=3
        )
        stream = await client.chat.completions.create(
            model="zephyr", messages=WORDS, stream=True, top_p=0.5
        )
        chunks = [chunk async for chunk in stream]
    assert answer.choices[0].message.content == " ".join(said) + " "
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 4)
    assert [c.choices[0].delta.content for c in chunks if c.choices[0].delta.content] == [
        f"{word} " for word in said
    ]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "stop"
    whole_call, streamed = whole.tgi.asked[-2:]
    assert whole_call == {
        "inputs": "<|user|>\nhello</s>\n<|assistant|>",
        "parameters": {
            "do_sample": True,
            "max_new_tokens": 9,
            "stop": ["X", "</s>"],
            "seed": 3,
            "temperature": 0.5,
            "best_of": 1,
            "details": True,
            "decoder_input_details": True,
        },
    }
    assert streamed["parameters"]["top_p"] == 0.5
    assert streamed["parameters"]["decoder_input_details"] is False


async def test_what_text_generation_refuses(whole: Whole) -> None:
    async with whole.client() as client:
        with pytest.raises(openai.UnprocessableEntityError) as error:
            await client.chat.completions.create(model="zephyr", messages=WORDS, max_tokens=0)
        assert error.value.code == "validation"
        assert "must be positive" in str(error.value)
        with pytest.raises(openai.BadRequestError, match="Failed to render chat template"):
            await client.chat.completions.create(
                model="zephyr",
                messages=[{"role": "user", "content": None}],  # type: ignore[arg-type, typeddict-item]
            )
        with pytest.raises(openai.NotFoundError):
            await client.embeddings.create(model="zephyr", input="x")
