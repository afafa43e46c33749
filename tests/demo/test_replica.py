"""The demo replica as real clients see it: over its Unix socket, streaming and not."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import httpx2
import openai
import pytest
import pytest_asyncio
from aiohttp import web
from waiting import until

from gatewayd.demo.replica import DemoReplica, Manner, parse_args
from gatewayd.demo.speech import pieces

ASK = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "tell me a story"}]


@pytest.fixture
def socket_path(tmp_path: Path) -> str:
    return str(tmp_path / "a.sock")


@pytest.fixture
def manner() -> Manner:
    return Manner(name="a", model="demo-llm", tokens_per_second=0, ttft_s=0)


@pytest_asyncio.fixture
async def replica(manner: Manner, socket_path: str) -> AsyncIterator[DemoReplica]:
    replica = DemoReplica(manner)
    runner = web.AppRunner(replica.application(), handler_cancellation=True, access_log=None)
    await runner.setup()
    await web.UnixSite(runner, socket_path).start()
    yield replica
    await runner.cleanup()


@pytest_asyncio.fixture
async def client(replica: DemoReplica, socket_path: str) -> AsyncIterator[openai.AsyncOpenAI]:
    transport = httpx2.AsyncHTTPTransport(uds=socket_path)
    async with openai.AsyncOpenAI(
        base_url="http://replica/v1",
        api_key="none",
        max_retries=0,
        http_client=openai.DefaultAsyncHttpxClient(transport=transport),
    ) as client:
        yield client


@pytest_asyncio.fixture
async def http(replica: DemoReplica, socket_path: str) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.UnixConnector(socket_path)
    async with aiohttp.ClientSession("http://replica", connector=connector) as session:
        yield session


async def test_models(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["demo-llm"]
    assert (await client.models.retrieve("demo-llm")).id == "demo-llm"
    with pytest.raises(openai.NotFoundError, match="serves only 'demo-llm'"):
        await client.models.retrieve("gpt-9")


async def test_chat(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="demo-llm", messages=ASK)
    (choice,) = answer.choices
    assert choice.finish_reason == "stop"
    assert choice.message.role == "assistant"
    assert choice.message.content is not None
    assert choice.message.content.endswith("“tell me a story”")
    assert answer.model == "demo-llm"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 4
    assert answer.usage.completion_tokens == len(pieces(choice.message.content))
    assert answer.usage.total_tokens == 4 + answer.usage.completion_tokens


async def test_chat_stream(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="demo-llm",
        messages=ASK,
        max_tokens=6,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    *spoken, usage = chunks
    assert spoken[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].delta.content for chunk in spoken[1:-1]] == pieces(
        "This is gatewayd's demo replica a."
    )
    assert [chunk.choices[0].finish_reason for chunk in spoken] == [None] * 7 + ["length"]
    assert usage.choices == []
    assert usage.usage is not None
    assert usage.usage.completion_tokens == 6
    assert len({chunk.id for chunk in chunks}) == 1


async def test_chat_content_parts_and_stop(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="demo-llm",
        messages=[{"role": "user", "content": [{"type": "text", "text": "hi there"}]}],
        stop=["replica", "nothing"],
    )
    assert answer.choices[0].message.content == "This is gatewayd's demo "
    assert answer.choices[0].finish_reason == "stop"


async def test_completions(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(model="demo-llm", prompt="once upon", max_tokens=3)
    assert answer.choices[0].text == "This is gatewayd's"
    assert answer.choices[0].finish_reason == "length"
    stream = await client.completions.create(
        model="demo-llm", prompt="once upon", max_tokens=3, stream=True
    )
    chunks = [chunk.choices[0] async for chunk in stream]
    assert "".join(chunk.text for chunk in chunks) == "This is gatewayd's"
    assert [chunk.finish_reason for chunk in chunks] == [None, None, None, "length"]


async def test_generate(http: aiohttp.ClientSession) -> None:
    body = {"text": "hello", "sampling_params": {"max_new_tokens": 4}}
    async with http.post("/generate", json=body) as response:
        answer = await response.json()
    assert answer["text"] == "This is gatewayd's demo"
    assert answer["meta_info"]["finish_reason"] == {"type": "length", "length": 4}
    assert answer["meta_info"]["completion_tokens"] == 4

    async with http.post("/generate", json={**body, "stream": True}) as response:
        assert response.headers["content-type"] == "text/event-stream"
        events = (await response.read()).decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    values = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert [value["text"] for value in values][:2] == ["This", "This is"]
    assert values[-1]["text"] == "This is gatewayd's demo"
    assert values[-1]["meta_info"]["finish_reason"] == {"type": "length", "length": 4}


@pytest.mark.parametrize(
    ("path", "body", "param", "words"),
    [
        ("/v1/chat/completions", {}, "messages", "at least one message"),
        ("/v1/chat/completions", {"messages": "hi"}, "messages", "must be list"),
        ("/v1/chat/completions", {"messages": [{"role": "user"}]}, "messages[0]", "content"),
        ("/v1/chat/completions", {"messages": ASK, "n": 2}, "n", "must be 1"),
        ("/v1/chat/completions", {"messages": ASK, "max_tokens": 0}, "max_tokens", "at least 1"),
        ("/v1/chat/completions", {"messages": ASK, "max_tokens": True}, "max_tokens", "int"),
        ("/v1/chat/completions", {"messages": ASK, "stop": [""]}, "stop", "none empty"),
        (
            "/v1/chat/completions",
            {"messages": ASK, "stream_options": {"include_usage": True}},
            "stream_options",
            "only for streams",
        ),
        (
            "/v1/chat/completions",
            {"messages": ASK, "ignore_eos": True},
            "ignore_eos",
            "never end",
        ),
        ("/v1/completions", {"prompt": ["a", "b"]}, "prompt", "no batches"),
        ("/generate", {"text": ["a", "b"]}, "text", "no batches"),
        ("/generate", [], None, "JSON object"),
    ],
)
async def test_bad_requests_say_what_is_wrong(
    http: aiohttp.ClientSession, path: str, body: object, param: str | None, words: str
) -> None:
    async with http.post(path, json=body) as response:
        error = (await response.json())["error"]
    assert response.status == 400
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert words in error["message"]


async def test_not_json(http: aiohttp.ClientSession) -> None:
    async with http.post("/v1/chat/completions", data=b"{") as response:
        assert response.status == 400
        assert "not JSON" in (await response.json())["error"]["message"]


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("/server_info", "served_model_name"),
        ("/get_server_info", "served_model_name"),
        ("/model_info", "model_path"),
        ("/get_model_info", "model_path"),
    ],
)
async def test_what_a_router_asks(http: aiohttp.ClientSession, path: str, key: str) -> None:
    async with http.get(path) as response:
        assert (await response.json())[key] == "demo-llm"


async def test_idle_load(http: aiohttp.ClientSession) -> None:
    async with http.get("/v1/loads") as response:
        (load,) = (await response.json())["loads"]
    assert (load["num_running_reqs"], load["num_total_tokens"]) == (0, 0)


@pytest.mark.parametrize("path", ["/health", "/health_generate"])
async def test_health(http: aiohttp.ClientSession, path: str) -> None:
    async with http.get(path) as response:
        assert response.status == 200


@pytest.mark.parametrize("stream", [True, False])
async def test_it_stops_when_the_client_leaves(
    replica: DemoReplica, http: aiohttp.ClientSession, stream: bool
) -> None:
    replica.manner = Manner(name="a", tokens_per_second=100, ttft_s=0)
    body = {"messages": ASK, "max_tokens": 100_000, "ignore_eos": True, "stream": stream}

    async def load() -> tuple[int, int]:
        async with http.get("/get_load") as response:
            (load,) = await response.json()
            return load["num_reqs"], load["num_tokens"]

    async def running() -> bool:
        requests, tokens = await load()
        return requests == 1 and tokens > 4

    async def idle() -> bool:
        return await load() == (0, 0)

    async def ask() -> None:
        async with http.post("/v1/chat/completions", json=body) as response:
            await response.read()

    task = asyncio.create_task(ask())
    await until(running)
    task.cancel()
    await until(idle)
    assert repr(replica) == "<DemoReplica a [0 running, 0 done, 1 aborted]>"


async def test_the_rate_is_kept(replica: DemoReplica, client: openai.AsyncOpenAI) -> None:
    replica.manner = Manner(name="a", tokens_per_second=100, ttft_s=0.1)
    loop = asyncio.get_running_loop()
    begin = loop.time()
    await client.completions.create(model="demo-llm", prompt="x", max_tokens=11)
    assert 0.2 <= loop.time() - begin < 2  # 0.1 s to the first, ten more at 10 ms each


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_as_a_process(tmp_path: Path, socket_path: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gatewayd.demo.replica"),
        *("--socket", socket_path, "--name", "b", "--ttft", "0", "--tokens-per-second", "0"),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(30):
        line = await process.stdout.readline()
        assert line.decode() == f"demo replica b: demo-llm on unix:{socket_path}\n"
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(socket_path)) as http,
            http.get("http://replica/v1/models") as response,
        ):
            assert response.status == 200
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
        assert await process.stdout.read() == b""
    assert names(tmp_path) == []  # the socket is gone


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--socket", "/run/" + "x" * 120],
        ["--listen", "nowhere"],
        ["--listen", "127.0.0.1:70000"],
        ["--socket", "a", "--listen", "127.0.0.1:1"],
        ["--socket", "a", "--ttft", "-1"],
    ],
)
def test_wrong_arguments(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        parse_args(argv)
    assert raised.value.code == 2
    assert "usage:" in capsys.readouterr().err
