"""The composition behind `gatewayd demo`: its replicas, its proof, its words, its failures.

The gateway is handed in, so here a small one stands in for it; the whole is tested with the
command line.
"""

from __future__ import annotations

import asyncio
import re
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from waiting import until

from gatewayd.config.model import Config
from gatewayd.core.model import Address, TcpAddress, UnixAddress
from gatewayd.demo import show
from gatewayd.demo.run import Ready, run_demo

ANYWHERE = TcpAddress("127.0.0.1", 0)


class OneRelay:
    """Relays to the first replica. As many answers as `broken` says are no use, the first `past`
    good ones are not counted by what stands for the router."""

    def __init__(
        self,
        *,
        router: str | None = "ready",
        broken: int = 0,
        past: int = 0,
        code: int | None = None,
    ) -> None:
        self.config: Config | None = None
        self.stopped = False
        self.answered = 0
        self._router = router
        self._metrics = ""
        self._broken = broken
        self._past = past
        self._code = code

    async def _status(self, _request: web.Request) -> web.Response:
        serving = ["a", "b"] if self._router == "ready" else []
        router = {
            "state": self._router,
            "metrics": self._metrics,
            "targets": {"desired": ["a", "b"], "serving": serving},
        }
        return web.json_response({"services": [{"router": router}]})

    async def _routed(self, _request: web.Request) -> web.Response:
        count = max(0, self.answered - self._past)
        return web.Response(text=f'smg_router_requests_total{{model="m"}} {count}\n')

    async def _relay(self, request: web.Request) -> web.StreamResponse:
        if self._broken:
            self._broken -= 1
            return web.Response(status=503, text="no_ready_replica")
        assert self.config is not None
        address = self.config.services[0].replicas[0].address
        assert isinstance(address, UnixAddress)
        response = web.StreamResponse()
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(address.path)) as http,
            http.post(f"http://replica{request.path}", data=await request.read()) as answer,
        ):
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
        self.answered += 1
        await response.write_eof()
        return response

    @asynccontextmanager
    async def _site(self, app: web.Application, address: Address) -> AsyncIterator[web.AppRunner]:
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        if isinstance(address, UnixAddress):
            await web.UnixSite(runner, address.path).start()
        else:
            await web.TCPSite(runner, address.host, address.port).start()
        try:
            yield runner
        finally:
            await runner.cleanup()

    async def __call__(self, config: Config, ready: Ready) -> int:
        self.config = config
        if self._code is not None:
            return self._code
        admin, router, public = (web.Application() for _ in range(3))
        admin.router.add_get("/api/status", self._status)
        router.router.add_get("/metrics", self._routed)
        public.router.add_post("/v1/chat/completions", self._relay)
        where = config.listen.http[0].address
        assert where is not None
        try:
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(self._site(admin, config.listen.admin))
                metrics = await stack.enter_async_context(self._site(router, ANYWHERE))
                self._metrics = str(TcpAddress(*metrics.addresses[0][:2]))
                runner = await stack.enter_async_context(self._site(public, where))
                ready((TcpAddress(*runner.addresses[0][:2]),))
                await asyncio.Event().wait()
                return 0
        finally:
            self.stopped = True


@pytest.fixture
def printed() -> list[str]:
    return []


async def test_once_shows_a_streamed_answer(printed: list[str]) -> None:
    gateway = OneRelay(broken=2)
    assert await run_demo(gateway, listen=ANYWHERE, once=True, say=printed.append) == 0
    assert printed[0] == "> Hello! Who are you?\n\n"
    assert len(printed) > 10  # as it came, not at once
    assert "demo replica a. No language model runs here" in "".join(printed)
    assert "Try it" not in "".join(printed)
    assert gateway.stopped
    assert gateway.config is not None
    assert not folder(gateway.config).exists()


async def test_an_answer_that_went_past_the_router_does_not_count(printed: list[str]) -> None:
    gateway = OneRelay(past=1)
    assert await run_demo(gateway, listen=ANYWHERE, once=True, say=printed.append) == 0
    assert gateway.answered == 2


def folder(config: Config) -> Path:
    return Path(config.state_dir).parent


async def test_in_the_foreground_it_says_what_to_try_and_it_works(printed: list[str]) -> None:
    gateway = OneRelay()
    demo = asyncio.create_task(run_demo(gateway, listen=ANYWHERE, say=printed.append))
    await until(lambda: bool(printed) and "Try it" in printed[-1])
    (curl,) = re.findall(r"^    (curl -N .*)$", printed[-1], re.MULTILINE)
    out = await output_of("sh", "-c", f"{curl} -sS")
    assert out.startswith("data: {")
    assert out.endswith("data: [DONE]\n\n")
    python = printed[-1].split("from Python:\n\n")[1].split("\nand see")[0]
    out = await output_of(sys.executable, "-c", re.sub("^    ", "", python, flags=re.MULTILINE))
    assert out.endswith("You sent 1 words: “Hello”")
    demo.cancel()
    await asyncio.wait((demo,))
    assert demo.cancelled()
    assert gateway.stopped
    assert gateway.config is not None
    assert not folder(gateway.config).exists()


async def output_of(*argv: str) -> str:
    process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(30):
        out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode()


async def test_a_gateway_that_ends_is_the_end(printed: list[str]) -> None:
    assert await run_demo(OneRelay(code=2), listen=ANYWHERE, say=printed.append) == 2
    assert printed == []


async def test_it_says_what_is_missing(
    printed: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(show, "SHOWN_WITHIN_S", 2.0)
    gateway = OneRelay(router="restarting")
    assert await run_demo(gateway, listen=ANYWHERE, say=printed.append) == 1
    error = capsys.readouterr().err
    assert "not up within 2 s, missing: the router (is sglang-router installed?)" in error
    assert "it is restarting with targets []" in error
    assert gateway.stopped


async def test_a_taken_port_is_said_before_anything_starts(
    printed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    gateway = OneRelay()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        listen = TcpAddress("127.0.0.1", port)
        assert await run_demo(gateway, listen=listen, say=printed.append) == 1
    error = capsys.readouterr().err
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in error
    assert "--listen" in error
    assert gateway.config is None
