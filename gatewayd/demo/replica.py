"""A small OpenAI-compatible server without a model: the replica of `gatewayd demo`.

Owns: its HTTP surface, the pace of its words, the count of what runs. Does not own: the words
(demo.speech), the JSON (demo.wire). It answers what clients ask of an engine and what
sglang-router asks of a worker, and it says plainly that it is a demo.

    python -m gatewayd.demo.replica --socket /tmp/a.sock --tokens-per-second 50
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from gatewayd import __version__
from gatewayd.demo import wire
from gatewayd.demo.speech import Speech

_SOCKET_PATH_BYTES = 107  # sun_path less its final NUL
_SSE = {"content-type": "text/event-stream", "cache-control": "no-cache"}


@dataclass(frozen=True, slots=True)
class Manner:
    """How a replica calls itself and how fast it speaks."""

    name: str = "demo"
    model: str = "demo-llm"
    tokens_per_second: float = 50.0  # 0: as fast as the client reads
    ttft_s: float = 0.1


@dataclass(slots=True)
class DemoReplica:
    """`<DemoReplica a [2 running, 17 done, 1 aborted]>`"""

    manner: Manner
    running: set[Speech] = field(default_factory=set)
    done: int = 0
    aborted: int = 0

    def __repr__(self) -> str:
        counts = f"{len(self.running)} running, {self.done} done, {self.aborted} aborted"
        return f"<DemoReplica {self.manner.name} [{counts}]>"

    def application(self) -> web.Application:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        for path in ("/health", "/health_generate"):
            app.router.add_get(path, self._health)
        for path in ("/server_info", "/get_server_info"):
            app.router.add_get(path, self._server_info)
        for path in ("/model_info", "/get_model_info"):
            app.router.add_get(path, self._model_info)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/models/{model:.+}", self._model)
        app.router.add_get("/get_load", self._get_load)
        app.router.add_get("/v1/loads", self._loads)
        app.router.add_post(
            "/v1/chat/completions", self._completions(wire.read_chat, wire.ChatAnswer)
        )
        app.router.add_post(
            "/v1/completions", self._completions(wire.read_completion, wire.CompletionAnswer)
        )
        app.router.add_post("/generate", self._completions(wire.read_generate, wire.GenerateAnswer))
        return app

    # --- what it says about itself ---------------------------------------------------------

    async def _health(self, _request: web.Request) -> web.Response:
        return web.Response()

    async def _server_info(self, _request: web.Request) -> web.Response:
        return web.json_response(
            {
                "model_path": self.manner.model,
                "served_model_name": self.manner.model,
                "tp_size": 1,
                "dp_size": 1,
                "disaggregation_mode": "null",
                "version": f"gatewayd-demo-{__version__}",
                "demo": {"name": self.manner.name, "done": self.done, "aborted": self.aborted},
            }
        )

    async def _model_info(self, _request: web.Request) -> web.Response:
        return web.json_response(
            {
                "model_path": self.manner.model,
                "is_generation": True,
                "model_type": "demo",
                "architectures": ["None: a demo without a model"],
            }
        )

    def _card(self) -> wire.Json:
        card = {"id": self.manner.model, "object": "model", "created": 0, "owned_by": "gatewayd"}
        return {**card, "root": self.manner.model, "max_model_len": None}

    async def _models(self, _request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [self._card()]})

    async def _model(self, request: web.Request) -> web.Response:
        if request.match_info["model"] == self.manner.model:
            return web.json_response(self._card())
        message = f"this replica serves only {self.manner.model!r}"
        return web.json_response(wire.RequestError(message, "model").as_json(), status=404)

    async def _get_load(self, _request: web.Request) -> web.Response:
        load = {"dp_rank": 0, "num_reqs": len(self.running), "num_waiting_reqs": 0}
        return web.json_response([{**load, "num_tokens": self._tokens()}])

    async def _loads(self, _request: web.Request) -> web.Response:
        load = {"dp_rank": 0, "num_running_reqs": len(self.running), "num_waiting_reqs": 0}
        load["num_total_tokens"] = self._tokens()
        return web.json_response({"dp_rank_count": 1, "loads": [load]})

    def _tokens(self) -> int:
        return sum(speech.ask.prompt_tokens + speech.tokens for speech in self.running)

    # --- what it is for --------------------------------------------------------------------

    def _completions(
        self,
        read: Callable[[wire.Json], wire.Request],
        answer_type: Callable[[Speech, str], wire.Answer],
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handler(http: web.Request) -> web.StreamResponse:
            try:
                request = read(wire.read_body(await http.read()))
            except wire.RequestError as error:
                return web.json_response(error.as_json(), status=400)
            speech = Speech(self.manner.name, request.ask)
            answer = answer_type(speech, self.manner.model)
            self.running.add(speech)
            try:
                if request.stream:
                    response = await self._stream(http, request, speech, answer)
                else:
                    response = await self._whole(speech, answer)
                self.done += 1
                return response
            except (asyncio.CancelledError, ConnectionResetError):  # the client went away
                self.aborted += 1
                raise
            finally:
                self.running.discard(speech)

        return handler

    async def _whole(self, speech: Speech, answer: wire.Answer) -> web.StreamResponse:
        pace = _Pace(self.manner)
        said: list[str] = []
        for text in speech:
            await pace.next_token()
            said.append(text)
        return web.json_response(answer.whole("".join(said)))

    async def _stream(
        self, http: web.Request, request: wire.Request, speech: Speech, answer: wire.Answer
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers=_SSE)
        pace = _Pace(self.manner)
        await response.prepare(http)
        for event in answer.opening():
            await response.write(_event(event))
        for text in speech:
            await pace.next_token()
            if text:
                await response.write(_event(answer.piece(text)))
        for event in answer.closing(request.include_usage):
            await response.write(_event(event))
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response


def _event(value: wire.Json) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


class _Pace:
    """Tokens fall due at fixed times, so a slow write does not slow the rate down."""

    def __init__(self, manner: Manner) -> None:
        self._loop = asyncio.get_running_loop()
        self._interval = 1 / manner.tokens_per_second if manner.tokens_per_second else 0.0
        self._due = self._loop.time() + manner.ttft_s

    async def next_token(self) -> None:
        await asyncio.sleep(max(0.0, self._due - self._loop.time()))
        self._due += self._interval


# --- the process ---------------------------------------------------------------------------


async def serve(
    replica: DemoReplica, *, socket: str | None, listen: tuple[str, int] | None
) -> None:
    """Serve until SIGTERM or SIGINT; what runs then has 5 s to end."""
    runner = web.AppRunner(
        replica.application(), handler_cancellation=True, access_log=None, shutdown_timeout=5.0
    )
    await runner.setup()
    try:
        if socket is not None:
            await web.UnixSite(runner, socket).start()
            where = f"unix:{socket}"
        else:
            host, port = listen or ("127.0.0.1", 0)
            await web.TCPSite(runner, host, port).start()
            where = "{}:{}".format(*runner.addresses[0][:2])
        manner = replica.manner
        print(f"demo replica {manner.name}: {manner.model} on {where}", flush=True)
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await stop.wait()
    finally:
        await runner.cleanup()


def _positive(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError("must be a number from 0 on")
    return value


def _host_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise argparse.ArgumentTypeError("must be HOST:PORT")
    return host.strip("[]"), int(port)


def _socket_path(text: str) -> str:
    if len(text.encode()) > _SOCKET_PATH_BYTES:
        raise argparse.ArgumentTypeError(f"is longer than {_SOCKET_PATH_BYTES} bytes")
    return text


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    default = Manner()
    parser = argparse.ArgumentParser(
        prog="python -m gatewayd.demo.replica", description="An OpenAI-compatible demo server."
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--socket", type=_socket_path, help="Unix socket to serve on")
    where.add_argument("--listen", type=_host_port, metavar="HOST:PORT", help="or a TCP address")
    parser.add_argument("--name", default=default.name, help="how it calls itself")
    parser.add_argument("--model", default=default.model, help="model name it serves")
    parser.add_argument(
        "--tokens-per-second",
        type=_positive,
        default=default.tokens_per_second,
        help="0 is as fast as the client reads (default: %(default)s)",
    )
    parser.add_argument(
        "--ttft", type=_positive, default=default.ttft_s, help="seconds to the first token"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    manner = Manner(args.name, args.model, args.tokens_per_second, args.ttft)
    try:
        asyncio.run(serve(DemoReplica(manner), socket=args.socket, listen=args.listen))
    except OSError as error:
        print(f"demo replica {args.name}: {error}", file=sys.stderr)
        return 1
    finally:
        if args.socket is not None:
            Path(args.socket).unlink(missing_ok=True)  # asyncio leaves it before Python 3.13
    return 0


if __name__ == "__main__":
    sys.exit(main())
