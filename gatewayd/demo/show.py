"""The demo's proof that everything works, and the words that say what to try.

Owns: the streamed answer that is printed, what is missing when none comes, the printed lines.
Does not own: what runs (demo.run).
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from gatewayd.config.model import Config
from gatewayd.core.model import Address, TcpAddress, UnixAddress

SHOWN_WITHIN_S: Final = 20.0
MODEL: Final = "demo-llm"
EVERYWHERE: Final = frozenset({"0.0.0.0", "::", ""})
_PAST: Final = "gatewayd_router_fallbacks_total"
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
            await _through_the_router(base_url, config.listen.admin, progress, say)
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


async def _counted(admin: Address, name: str, progress: _Progress) -> float:
    """The sum of a metric's series; 0 while there is none, or no one to ask."""
    assert isinstance(admin, UnixAddress)
    connector = aiohttp.UnixConnector(admin.path)
    progress.seen = ""
    try:
        async with (
            aiohttp.ClientSession(connector=connector) as http,
            http.get("http://admin/metrics") as response,
        ):
            text = await response.text()
    except aiohttp.ClientError as error:
        progress.seen = str(error)
        return 0.0
    if response.status != 200:
        progress.seen = f"/metrics answers {response.status}"
    values = re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
    return sum(map(float, values))


async def _until_more(admin: Address, name: str, than: float, progress: _Progress) -> None:
    while True:
        value = await _counted(admin, name, progress)
        if value > than:
            return
        progress.seen = progress.seen or f"{name} is {value:g}"
        await asyncio.sleep(0.05)


async def _through_the_router(base_url: str, admin: Address, progress: _Progress, say: Say) -> None:
    """Stream answers until one has not gone past the router, as the gateway itself counts it."""
    progress.missing = "the router (is sglang-router installed?)"
    await _until_more(admin, "gatewayd_router_up", 0, progress)
    while True:
        answered = await _counted(admin, "gatewayd_requests_total", progress)
        past = await _counted(admin, _PAST, progress)
        progress.missing = "an answer from the demo service"
        await _stream_answer(base_url, progress, say)
        await _until_more(admin, "gatewayd_requests_total", answered, progress)
        if await _counted(admin, _PAST, progress) == past:
            return
        progress.missing = "an answer that came through the router"


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


def what_to_try(base_url: str, admin: Address) -> str:
    """Lines that work when pasted as they are."""
    body = json.dumps({**_ASK, "messages": [{"role": "user", "content": "Hello"}]})
    return f"""
The demo is up: {base_url} -> router -> bridge -> two demo replicas on Unix sockets.
Try it from another terminal:

    curl -N {base_url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'

or, after `pip install openai`, from Python:

    from openai import OpenAI
    client = OpenAI(base_url="{base_url}/v1", api_key="none")
    messages = [{{"role": "user", "content": "Hello"}}]
    for chunk in client.chat.completions.create(model="{MODEL}", messages=messages, stream=True):
        print(chunk.choices[0].delta.content or "", end="", flush=True)

and see what it does:

    gatewayd status --admin {admin}
    curl --unix-socket {str(admin).removeprefix("unix:")} http://localhost/metrics

Ctrl-C stops it.
"""
