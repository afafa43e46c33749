"""The demo's proof that everything works, and the words that say what to try.

Owns: the streamed answer that is printed, what is missing when none comes, the printed lines.
Does not own: what runs (demo.run).
"""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp

from gatewayd.config.model import Config, ListenAddress
from gatewayd.core.model import Address, TcpAddress, UnixAddress

SHOWN_WITHIN_S: Final = 20.0
MODEL: Final = "demo-llm"
EVERYWHERE: Final = frozenset({"0.0.0.0", "::", ""})
_ROUTED: Final = re.compile(r"^smg_router_requests_total\{.*\} (\S+)$", re.MULTILINE)
_ASK: Final[dict[str, Any]] = {
    "model": MODEL,
    "stream": True,
    "messages": [{"role": "user", "content": "Hello! Who are you?"}],
}

Say = Callable[[str], None]  # writes text as it is, at once


class DemoFailedError(Exception):
    """What is missing, in words for whoever started the demo."""


@dataclass(slots=True)
class _Progress:
    missing: str = "the gateway's public address"
    seen: str = ""


async def show(config: Config, bound: asyncio.Future[tuple[Address, ...]], say: Say) -> str:
    """Print a streamed answer that came through everything; the base URL to use. Or say what
    is missing."""
    progress = _Progress()
    try:
        async with asyncio.timeout(SHOWN_WITHIN_S):
            base_url = f"http://{_dialled((await bound)[0])}"
            admin = config.listen.admin
            assert not isinstance(admin, ListenAddress)  # the demo binds it itself
            await _through_the_router(base_url, admin, progress, say)
            return base_url
    except TimeoutError:
        raise DemoFailedError(
            f"not up within {SHOWN_WITHIN_S:g} s, missing: {progress.missing}; "
            f"last seen: {progress.seen or 'nothing'}"
        ) from None


def _dialled(address: Address) -> Address:
    if isinstance(address, TcpAddress) and address.host in EVERYWHERE:
        return TcpAddress("127.0.0.1", address.port)
    return address


async def _through_the_router(base_url: str, admin: Address, progress: _Progress, say: Say) -> None:
    """Stream answers until one has made the router's own count of requests go up.

    While a router starts requests go straight to the replicas, and look just the same.
    """
    metrics = await _router_ready(admin, progress)
    progress.missing = "an answer that came through the router"
    while True:
        before = await _routed(metrics, progress)
        await _stream_answer(base_url, progress, say)
        for _ in range(10):  # it may count a moment after the answer has ended
            if await _routed(metrics, progress) > before:
                return
            await asyncio.sleep(0.05)
        progress.seen = progress.seen or "an answer that went past it"


async def _router_ready(admin: Address, progress: _Progress) -> Address:
    """The address of the router's metrics, once it has every replica as a target."""
    progress.missing = "the router (is sglang-router installed?)"
    while True:
        text = await _read(admin, "/api/status", progress)
        if text:
            service = json.loads(text)["services"][0]
            router, targets = service["router"], service["router"]["targets"]
            progress.seen = f"it is {router['state']} with targets {targets['serving']}"
            if router["metrics"] and set(targets["serving"]) >= set(targets["desired"]):
                host, _, port = router["metrics"].rpartition(":")
                return TcpAddress(host, int(port))
        await asyncio.sleep(0.05)


async def _routed(metrics: Address, progress: _Progress) -> float:
    values = _ROUTED.findall(await _read(metrics, "/metrics", progress))
    return sum(map(float, values))


async def _read(address: Address, path: str, progress: _Progress) -> str:
    """The text found there, or none."""
    connector, host = None, str(address)
    if isinstance(address, UnixAddress):
        connector, host = aiohttp.UnixConnector(address.path), "admin"
    try:
        async with (
            aiohttp.ClientSession(connector=connector) as http,
            http.get(f"http://{host}{path}") as response,
        ):
            if response.status == 200:
                return await response.text()
            progress.seen = f"{path} answers {response.status}"
    except aiohttp.ClientError as error:
        progress.seen = str(error) or type(error).__name__
    return ""


async def _stream_answer(base_url: str, progress: _Progress, say: Say) -> None:
    async with aiohttp.ClientSession() as http:
        while True:
            try:
                async with http.post(f"{base_url}/v1/chat/completions", json=_ASK) as response:
                    if response.status == 200:
                        await _repeat(response, say)
                        return
                    progress.seen = f"{response.status} {(await response.text())[:300]}"
            except aiohttp.ClientError as error:
                progress.seen = str(error) or type(error).__name__
            await asyncio.sleep(0.1)


async def _repeat(response: aiohttp.ClientResponse, say: Say) -> None:
    """Say a stream as it comes; one that breaks off is a ClientError."""
    say(f"> {_ASK['messages'][0]['content']}\n\n")
    try:
        async for line in response.content:
            data = line.strip().removeprefix(b"data: ")
            if data == b"[DONE]":
                return
            if data:
                for choice in json.loads(data)["choices"]:
                    say(choice["delta"].get("content") or "")
    finally:
        say("\n")
    raise aiohttp.ClientPayloadError("the stream ended before [DONE]")


def _command() -> str:
    """This program from another terminal, which may know nothing of this one's environment."""
    ours, known = Path(sys.argv[0]), shutil.which("gatewayd")
    if ours.name != "gatewayd":
        return f"{shlex.quote(sys.executable)} -m gatewayd"
    if known is not None and Path(known).absolute() == ours.absolute():
        return "gatewayd"
    return shlex.quote(str(ours.absolute()))


def what_to_try(base_url: str, admin: str) -> str:
    """Lines that work when pasted as they are."""
    body = json.dumps({**_ASK, "messages": [{"role": "user", "content": "Hello"}]})
    return f"""
The demo is up: {base_url} is a gateway with a router and two demo replicas on Unix sockets.
Try it from another terminal:

    curl -N {base_url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'

or, after `pip install openai`, from Python:

    from openai import OpenAI
    client = OpenAI(base_url="{base_url}/v1", api_key="none")
    messages = [{{"role": "user", "content": "Hello"}}]
    for chunk in client.chat.completions.create(model="{MODEL}", messages=messages, stream=True):
        print(chunk.choices[0].delta.content or "", end="", flush=True)

and see what it does:

    {_command()} status --admin {admin}
    curl --unix-socket {admin.removeprefix("unix:")} http://localhost/metrics

Ctrl-C stops it.
"""
