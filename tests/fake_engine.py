"""A small engine for tests: what a router and a gateway ask of a replica, without a model.

    async with FakeEngine("e0") as engine:          # TCP port zero; FakeEngine("e0", path) is Unix
        ... engine.url, engine.requests, engine.healthy = False, engine.gate.clear() ...

It says `token 0 `, `token 1 `, ... `max_tokens` of them (4 unless told), each one when `gate` is
set and `gap_s` has passed, and records every request with how it ended.
"""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import web

# A router greets each new target in HTTP/2 as well, and aiohttp logs a traceback for it.
_QUIET = logging.getLogger("fake_engine")
_QUIET.disabled = True


@dataclass
class Recorded:
    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes
    outcome: str = "running"  # then "completed" or "client gone"
    tokens: int = 0

    def header(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class FakeEngine:
    name: str = "engine"
    path: Path | str | None = None
    model: str = "fake-model"
    healthy: bool = True
    gap_s: float = 0.0
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    answers: dict[str, web.Response] = field(default_factory=dict)  # path -> instead of the usual
    requests: list[Recorded] = field(default_factory=list)
    running: int = 0
    host: str = "127.0.0.1"
    port: int = 0
    _runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Starting it again takes the same address."""
        self.gate.set()
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{tail:.*}", self._entry)
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1, logger=_QUIET
        )
        await self._runner.setup()
        if self.path is not None:
            await web.UnixSite(self._runner, str(self.path)).start()
        else:
            await web.TCPSite(self._runner, self.host, self.port, reuse_address=True).start()
            self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def of(self, path: str) -> list[Recorded]:
        """The requests to `path`, oldest first."""
        return [request for request in self.requests if request.path == path]

    @property
    def inferences(self) -> list[Recorded]:
        return self.of("/v1/chat/completions") + self.of("/generate")

    async def _entry(self, request: web.Request) -> web.StreamResponse:
        recorded = Recorded(request.method, request.path, list(request.headers.items()), b"")
        self.requests.append(recorded)
        try:
            recorded.body = await request.read()
            response = await self._answer(request, recorded)
        except (asyncio.CancelledError, ConnectionResetError):
            recorded.outcome = "client gone"
            raise
        recorded.outcome = "completed"
        return response

    async def _answer(self, request: web.Request, recorded: Recorded) -> web.StreamResponse:
        if request.path in self.answers:
            answer = self.answers[request.path]
            return web.Response(body=answer.body, status=answer.status, headers=answer.headers)
        match request.path:
            case "/health" | "/health_generate":
                return web.Response(status=200 if self.healthy else 503)
            case "/server_info" | "/get_server_info":
                return web.json_response(self._info() | {"disaggregation_mode": "null"})
            case "/model_info" | "/get_model_info":
                return web.json_response(self._info() | {"is_generation": True})
            case "/v1/models":
                card = {"id": self.model, "object": "model", "created": 0, "owned_by": "fake"}
                return web.json_response({"object": "list", "data": [card]})
            case "/get_load":
                return web.json_response([{"dp_rank": 0, "num_reqs": self.running}])
            case "/v1/chat/completions" | "/generate":
                return await self._generate(request, recorded)
        return web.json_response({"error": {"message": "no such path"}}, status=404)

    def _info(self) -> dict[str, Any]:
        return {"model_path": self.model, "served_model_name": self.model, "status": "ready"}

    async def _generate(self, request: web.Request, recorded: Recorded) -> web.StreamResponse:
        body = recorded.json
        chat = request.path != "/generate"
        wanted = (
            body.get("max_tokens") or body.get("max_completion_tokens")
            if chat
            else (body.get("sampling_params") or {}).get("max_new_tokens")
        ) or 4
        self.running += 1
        try:
            if not body.get("stream"):
                for recorded.tokens in range(1, wanted + 1):
                    await self._pause()
                text = "".join(f"token {i} " for i in range(wanted))
                return web.json_response(self._piece(chat, text, last=True, whole=True))
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            for i in range(wanted):
                await self._pause()
                # As the real one: /generate repeats the whole text so far.
                text = f"token {i} " if chat else "".join(f"token {j} " for j in range(i + 1))
                piece = self._piece(chat, text, last=i == wanted - 1, whole=False)
                await response.write(b"data: " + json.dumps(piece).encode() + b"\n\n")
                recorded.tokens = i + 1
            await response.write(b"data: [DONE]\n\n")
            await response.write_eof()
            return response
        finally:
            self.running -= 1

    async def _pause(self) -> None:
        await self.gate.wait()
        await asyncio.sleep(self.gap_s)

    def _piece(self, chat: bool, text: str, *, last: bool, whole: bool) -> dict[str, Any]:
        if not chat:
            return {"text": text, "meta_info": {"id": self.name, "completion_tokens": 1}}
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop" if last else None}
        choice["message" if whole else "delta"] = {"role": "assistant", "content": text}
        kind = "chat.completion" if whole else "chat.completion.chunk"
        return {
            "id": self.name,
            "object": kind,
            "created": 0,
            "model": self.model,
            "choices": [choice],
            **(
                {"usage": {"prompt_tokens": 1, "completion_tokens": 4, "total_tokens": 5}}
                if whole
                else {}
            ),
        }
