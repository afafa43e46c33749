"""A real router under its plug-in, engines for it to choose from, and a client like the edge."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from fake_engine import FakeEngine
from waiting import until

from gatewayd.core.model import RouterSpec
from gatewayd.routers.base import SyncState, Target, load, port_pool
from gatewayd.routers.http_api import RouterApi
from gatewayd.routers.http_router import HttpRouter

# Test processes that run at the same time begin at different ports.
PORTS = port_pool(20000 + os.getpid() * 97 % 4800, 24999)


@asynccontextmanager
async def running(
    router_type: str, log_dir: Path, policy: str | None = None, **args: str | None
) -> AsyncIterator[HttpRouter]:
    flags = tuple((flag.replace("_", "-"), value) for flag, value in args.items())
    spec = RouterSpec(router_type, policy=policy, args=flags)
    router = load(router_type).create("router of test", spec, ports=PORTS, log_dir=log_dir)
    assert isinstance(router, HttpRouter)
    router.start(lambda: None, lambda: None)
    try:
        assert await router.ready(20), router.last_words
        yield router
    finally:
        await router.stop()


@asynccontextmanager
async def engines(count: int) -> AsyncIterator[list[FakeEngine]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(FakeEngine(f"e{i}")) for i in range(count)]


def targets(*chosen: FakeEngine) -> list[Target]:
    return [Target(engine.name, engine.url) for engine in chosen]


async def settle(router: HttpRouter, wanted: list[Target]) -> SyncState:
    """Passes until there is nothing left to do."""

    async def settled() -> SyncState | None:
        state = await router.sync(wanted)
        return state if state.settled else None

    state = await until(settled)
    assert state is not None
    assert state.serving == {target.id for target in wanted}
    return state


def key_of(router: HttpRouter) -> str:
    return router.traits.request_headers[0][1].decode().removeprefix("Bearer ")


async def api_of(router: HttpRouter) -> RouterApi:
    assert router.endpoint is not None
    return RouterApi(router.endpoint.port, key_of(router), router.registration)


class Client:
    """Asks as the edge does: with what the traits add, and nothing else of its own."""

    def __init__(self, router: HttpRouter, session: aiohttp.ClientSession) -> None:
        self._router = router
        self.session = session

    @property
    def url(self) -> str:
        assert self._router.endpoint is not None
        return f"http://{self._router.endpoint}"

    @property
    def headers(self) -> dict[str, str]:
        return {k.decode(): v.decode() for k, v in self._router.traits.request_headers}

    async def chat(
        self,
        prompt: str = "hello",
        *,
        headers: dict[str, str] | None = None,
        model: str = "fake-model",
        **body: Any,
    ) -> tuple[int, str | None, Any]:
        """(status, the router's own error code, JSON or the bytes of a stream)."""
        body = {"model": model, "messages": [{"role": "user", "content": prompt}], **body}
        async with self.session.post(
            f"{self.url}/v1/chat/completions",
            json=body,
            headers={**(headers or {}), **self.headers},
        ) as response:
            code = response.headers.get(self._router.traits.error_header.decode())
            if body.get("stream"):
                return response.status, code, await response.read()
            return response.status, code, await response.json(content_type=None)
