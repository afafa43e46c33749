"""What stands between us and a real ACME authority in tests, and misbehaves when told to.

`before` may answer a request itself (or raise ConnectionError: the connection is cut), `after` may
change what the authority answered. `asked` lists the paths of all requests.
"""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
from aiohttp import web
from certificates import write_pair
from pebble import Pebble

Before = Callable[[str, bytes], Awaitable[web.Response | None]]
After = Callable[[str, bytes], bytes]


def problem(kind: str, detail: str = "its words", status: int = 400, **headers: str) -> Any:
    return web.Response(
        body=json.dumps({"type": f"urn:ietf:params:acme:error:{kind}", "detail": detail}),
        status=status,
        headers=headers,
        content_type="application/problem+json",
    )


def payload(body: bytes) -> dict[str, Any]:
    """Of a signed request."""
    text = json.loads(body)["payload"]
    return dict(json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)) or b"{}"))


class Front:
    def __init__(self, pebble: Pebble, home: Path) -> None:
        self._pebble = pebble
        self._home = home
        self.before: Before | None = None
        self.after: After | None = None
        self.delay_s = 0.0
        self.asked: list[str] = []
        self.port = 0

    @property
    def directory(self) -> str:
        return f"https://localhost:{self.port}/dir"

    def calm(self) -> None:
        self.before = self.after = None
        self.delay_s = 0.0
        self.asked.clear()

    async def __aenter__(self) -> Self:
        cert, key = write_pair(self._pebble.authority.pair("localhost"), self._home, "front")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)
        self._http = aiohttp.ClientSession(auto_decompress=False)
        self._runner = web.ServerRunner(web.Server(self._serve), shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._http.close()
        await self._runner.cleanup()

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        self.asked.append(request.path)
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        try:
            answer = None if self.before is None else await self.before(request.path, body)
        except ConnectionError:
            assert request.transport is not None
            request.transport.abort()
            raise
        if answer is not None:
            if request.method == "POST":  # a refusal brings a nonce along
                answer.headers["Replay-Nonce"] = await self._nonce(request)
            return answer
        return await self._passed_on(request, body)

    async def _nonce(self, request: web.BaseRequest) -> str:
        url = f"https://localhost:{self._pebble.port}/nonce-plz"
        async with self._http.head(url, ssl=self._pebble.authority.client()) as answer:
            return answer.headers["Replay-Nonce"]

    async def _passed_on(self, request: web.BaseRequest, body: bytes) -> web.Response:
        # The Host stays ours: pebble builds its URLs from it.
        headers = {n: v for n, v in request.headers.items() if n in ("Host", "Content-Type")}
        async with self._http.request(
            request.method,
            f"https://localhost:{self._pebble.port}{request.path}",
            data=body or None,
            headers=headers,
            ssl=self._pebble.authority.client(),
        ) as answer:
            content = await answer.read()
            if self.after is not None:
                content = self.after(request.path, content)
            kept = ("Replay-Nonce", "Location", "Retry-After", "Content-Type", "Link")
            return web.Response(
                body=content,
                status=answer.status,
                headers={n: v for n, v in answer.headers.items() if n in kept},
            )
