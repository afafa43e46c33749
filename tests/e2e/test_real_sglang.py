"""The whole with real SGLang workers: docs/real-sglang.md says how to install them.

OpenAI clients -> gatewayd -> sglang-router -> bridge -> Unix socket -> SGLang.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
import pytest_asyncio
import yaml
from waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

WORKER_READY_S = 300
WORDS = [{"role": "user", "content": "Tell me about sockets."}]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@asynccontextmanager
async def running(
    *argv: str, log: Path, stop_s: float
) -> AsyncIterator[asyncio.subprocess.Process]:
    with log.open("ab") as out:
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(stop_s):
                await process.wait()
        except TimeoutError:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


@asynccontextmanager
async def unix_to_tcp(path: str, port: int) -> AsyncIterator[None]:
    """What an ssh tunnel would be: when one side goes, the other is told."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))

    server = await asyncio.start_unix_server(relay, path)
    try:
        yield
    finally:
        server.close()


@dataclass(frozen=True, slots=True)
class Worker:
    name: str
    port: int
    socket: str
    http: aiohttp.ClientSession

    async def healthy(self) -> bool:
        try:
            async with self.http.get(f"http://127.0.0.1:{self.port}/health") as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False

    async def model(self) -> str:
        async with self.http.get(f"http://127.0.0.1:{self.port}/v1/models") as response:
            return str((await response.json())["data"][0]["id"])

    async def metric(self, name: str) -> float:
        """The sum of a metric's series; 0 while there is none."""
        async with self.http.get(f"http://127.0.0.1:{self.port}/metrics") as response:
            text = await response.text()
        found = re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
        return sum(map(float, found))

    async def aborted(self) -> float:
        return await self.metric("sglang:num_aborted_requests_total")

    async def finished(self) -> float:
        return await self.metric("sglang:num_requests_total")


@dataclass(slots=True)
class Whole:
    workers: list[Worker]
    process: asyncio.subprocess.Process
    base_url: str
    admin_url: str
    model: str
    http: aiohttp.ClientSession
    client: openai.AsyncOpenAI

    async def metrics(self) -> str:
        async with self.http.get(f"{self.admin_url}/metrics") as response:
            return await response.text()

    async def series(self, pattern: str) -> list[str]:
        return re.findall(f"^{pattern}", await self.metrics(), re.MULTILINE)

    async def router(self) -> dict[str, Any]:
        async with self.http.get(f"{self.admin_url}/api/status") as response:
            status: dict[str, Any] = (await response.json())["services"][0]["router"]
            return status

    async def router_serves(self) -> bool:
        try:
            return sorted((await self.router())["targets"]["serving"]) == ["a", "b"]
        except aiohttp.ClientError:
            return False

    async def routed(self) -> float:
        """How many requests the router itself has counted since it started."""
        address = (await self.router())["metrics"]
        async with self.http.get(f"http://{address}/metrics") as response:
            text = await response.text()
        counts = re.findall(r"^smg_router_requests_total\{.*\} (\S+)$", text, re.MULTILINE)
        return sum(map(float, counts))

    async def command(self, *argv: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gatewayd", *argv, "--admin", self.admin_url.split("//")[1]),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await process.communicate()
        assert process.returncode == 0, out.decode()
        return out.decode()

    async def stream(self, tokens: int) -> int:
        """How many tokens of a whole stream came. Each prompt is new from its first letter on, or
        the router would send them all where the first one went, for its cache."""
        chunks = 0
        stream = await self.client.chat.completions.create(
            model=self.model,
            messages=[{"role": "user", "content": f"{os.urandom(8).hex()} is a name for what?"}],
            max_tokens=tokens,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        usage = None
        async for chunk in stream:
            chunks += bool(chunk.choices and chunk.choices[0].delta.content)
            usage = chunk.usage or usage
        assert chunks > 0
        assert usage is not None, "the stream ended early"
        return usage.completion_tokens


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def workers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[list[Worker]]:
    start = str(Path(os.environ["GATEWAYD_SGLANG_DIR"], "start"))
    folder = tmp_path_factory.mktemp("workers")
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession())
        workers = [
            Worker(name, free_port(), str(folder / f"{name}.sock"), http) for name in ("a", "b")
        ]
        for worker in workers:
            log = folder / f"{worker.name}.log"
            argv = (start, str(worker.port))
            await stack.enter_async_context(running(*argv, log=log, stop_s=20))
            await stack.enter_async_context(unix_to_tcp(worker.socket, worker.port))
        for worker in workers:
            await until(worker.healthy, f"worker {worker.name} ({folder})", within_s=WORKER_READY_S)
        yield workers


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["through", "steer"])
async def whole(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, workers: list[Worker]
) -> AsyncIterator[Whole]:
    folder = tmp_path_factory.mktemp(request.param)
    model = await workers[0].model()
    public, admin = free_port(), free_port()
    service = {
        "name": "llm",
        "domain": "127.0.0.1",
        "model": model,
        "replicas": [{"id": worker.name, "socket": worker.socket} for worker in workers],
    }
    config = {
        "domain": "localhost",
        "router": {"type": "sglang", "mode": request.param},
        "workers": 2,
        "state_dir": str(folder / "state"),
        "listen": {"http": f"127.0.0.1:{public}", "admin": f"127.0.0.1:{admin}"},
        "auth": {"type": "tokens", "tokens": [{"name": "t", "token": "secret-token"}]},
        "services": [service],
    }
    file = folder / "gateway.yaml"
    file.write_text(yaml.safe_dump(config))
    base_url, admin_url = f"http://127.0.0.1:{public}", f"http://127.0.0.1:{admin}"
    gateway = (sys.executable, "-m", "gatewayd", "run", "-c", str(file))
    async with (
        aiohttp.ClientSession() as http,
        openai.AsyncOpenAI(
            base_url=f"{base_url}/v1", api_key="secret-token", max_retries=0, timeout=120
        ) as client,
        running(*gateway, log=folder / "gatewayd.log", stop_s=45) as process,
    ):
        whole = Whole(workers, process, base_url, admin_url, model, http, client)
        await until(whole.router_serves, f"the router ({folder})")
        yield whole
        process.terminate()
        async with asyncio.timeout(45):
            assert await process.wait() == 0


async def test_chat_completion_and_generate(whole: Whole) -> None:
    answer = await whole.client.chat.completions.create(
        model=whole.model, messages=WORDS, max_tokens=16
    )
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 16
    text = await whole.client.completions.create(
        model=whole.model, prompt="Once upon a time", max_tokens=8
    )
    assert text.choices[0].text
    body = {"text": "Once", "sampling_params": {"max_new_tokens": 4}}
    headers = {"Authorization": "Bearer secret-token"}
    async with whole.http.post(f"{whole.base_url}/generate", json=body, headers=headers) as reply:
        assert reply.status == 200
        assert (await reply.json())["meta_info"]["completion_tokens"] <= 4


async def test_streams_reach_both_workers(whole: Whole) -> None:
    before = [await worker.finished() for worker in whole.workers]
    routed = await whole.routed()
    tokens = await asyncio.gather(*(whole.stream(32) for _ in range(16)))
    assert tokens == [32] * 16
    assert await whole.routed() >= routed + 16

    async def counted() -> bool:
        after = [await worker.finished() for worker in whole.workers]
        gained = [now - then for now, then in zip(after, before, strict=True)]
        return sum(gained) >= 16 and min(gained) > 0

    await until(counted, "both workers answered some of 16 requests")


async def test_a_client_that_leaves_frees_the_worker(whole: Whole) -> None:
    stream = await whole.client.chat.completions.create(
        model=whole.model,
        messages=WORDS,
        max_tokens=6000,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    received = 0
    async for _ in stream:
        received += 1
        if received == 5:
            break

    before = sum([await worker.aborted() for worker in whole.workers])
    await stream.close()

    async def told() -> bool:
        return sum([await worker.aborted() for worker in whole.workers]) == before + 1

    await until(told, "a worker stops generating for nobody")


@pytest.mark.parametrize("path", ["/flush_cache", "/workers", "/get_server_info", "/metrics"])
async def test_no_administration_is_reachable(whole: Whole, path: str) -> None:
    headers = {"Authorization": "Bearer secret-token"}
    async with whole.http.get(f"{whole.base_url}{path}", headers=headers) as reply:
        assert reply.status == 403


async def test_without_a_token_nothing_is_answered(whole: Whole) -> None:
    async with whole.http.get(f"{whole.base_url}/v1/models") as reply:
        assert reply.status == 401


async def test_replicas_come_and_go_under_streams(whole: Whole) -> None:
    """b is drained while streams run, a takes everything, b comes back: none is cut or refused."""
    worker = whole.workers[1]
    streams = [asyncio.create_task(whole.stream(1500)) for _ in range(8)]

    async def both_busy() -> bool:  # by our count: the workers' own lags by seconds
        busy = await whole.series(r"gatewayd_requests_in_flight\{.*\} [1-9]")
        return len(busy) == 2

    async def draining() -> bool:
        return await whole.series(r'gatewayd_replicas\{.*state="draining".*\} 1') != []

    await until(both_busy, "both workers generate")
    drain = asyncio.create_task(
        whole.command("replica", "drain", "llm", worker.name, "--timeout", "2m")
    )
    await until(draining, "b is being drained")
    assert await asyncio.gather(*(whole.stream(20) for _ in range(8))) == [20] * 8
    assert [stream.result() for stream in streams if stream.done()] == []
    assert not drain.done()
    assert await asyncio.gather(*streams) == [1500] * 8
    await drain

    before = await worker.finished()
    assert await whole.stream(20) == 20
    assert await worker.finished() == before
    await whole.command("replica", "add", "llm", f"unix:{worker.socket}", "--id", worker.name)

    async def used_again() -> bool:
        await asyncio.gather(*(whole.stream(4) for _ in range(8)))
        return await worker.finished() > before

    await until(used_again, "b is used again")


async def test_a_killed_router_is_replaced_meanwhile_all_is_served(whole: Whole) -> None:
    (router,) = await routers_of(whole.process.pid)
    streams = [asyncio.create_task(whole.stream(4)) for _ in range(4)]
    await asyncio.gather(*streams)
    os.kill(router, signal.SIGKILL)
    answered = 0
    async with asyncio.timeout(30):
        while (
            await routers_of(whole.process.pid) in ([], [router]) or not await whole.router_serves()
        ):
            assert await whole.stream(4) == 4
            answered += 1
    assert answered > 0
    assert await whole.stream(4) == 4


async def routers_of(pid: int) -> list[int]:
    """Children that are a router, under the name they were started by or their own."""
    process = await asyncio.create_subprocess_exec(
        *("ps", "-ww", "-o", "pid=,args=", "--ppid", str(pid)), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    lines = [line.split(None, 1) for line in out.decode().splitlines()]
    return [
        int(number) for number, name in lines if re.search("routers/http_launch|sglang::", name)
    ]
