"""Clients for tests under load: streams that know whether a token is missing, steady posts, and
what each of them may be told while replicas come and go."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field

import aiohttp
from waiting import PATIENCE_S

CUT = (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)


class Broken(AssertionError):  # noqa: N818
    """A client saw what it must never see."""


@dataclass
class Heard:
    """What a stream has said so far. `end` is then "whole", "cut" or "refused"."""

    tokens: int = 0
    replica: str = ""
    end: str = ""
    moved: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[Heard] | None = None

    async def over(self, within_s: float = PATIENCE_S) -> str:
        """How it ended, of one that `begin` began."""
        assert self.task is not None
        async with asyncio.timeout(within_s):
            return (await self.task).end


@dataclass
class Clients:
    """Everybody who talks to one service of a gateway. `ids` are those of answered posts."""

    url: str
    service: str
    session: aiohttp.ClientSession
    ids: list[str] = field(default_factory=list)

    async def post(
        self, path: str = "/v1/chat/completions", prompt: str = "hi", **body: object
    ) -> tuple[int, dict[str, object]]:
        body = {"model": "m", "messages": [{"role": "user", "content": prompt}], **body}
        async with self.session.post(
            self.url + path, json=body, headers={"Host": f"{self.service}.test"}
        ) as response:
            self.ids.append(response.headers["X-Request-Id"])
            return response.status, await response.json(content_type=None)

    async def stream(self, tokens: int, heard: Heard | None = None, prompt: str = "hi") -> Heard:
        """One stream to its end. Raises Broken for a token that is missing, doubled or out of
        order, and for an end that looks whole and is not."""
        heard = heard or Heard()
        body = {
            "model": "m",
            "messages": [{"role": "user", "content": prompt}],
            "stream": True,
            "max_tokens": tokens,
        }
        done = False
        try:
            async with self.session.post(
                f"{self.url}/v1/chat/completions",
                json=body,
                headers={"Host": f"{self.service}.test"},
            ) as response:
                if response.status != 200:
                    heard.end = "refused"
                    heard.moved.set()
                    raise Broken(f"{response.status}: {await response.text()}")
                async for line in response.content:
                    done = done or line.startswith(b"data: [DONE]")
                    if line.startswith(b"data: {"):
                        _take(heard, json.loads(line[6:]))
        except CUT:
            heard.end = "cut"
            heard.moved.set()
            return heard
        if not done or heard.tokens != tokens:
            raise Broken(f"ended clean after {heard.tokens} of {tokens} tokens, [DONE]: {done}")
        heard.end = "whole"
        heard.moved.set()
        return heard


def _take(heard: Heard, event: dict[str, object]) -> None:
    heard.replica = str(event["id"])
    text = event["choices"][0]["delta"]["content"]  # type: ignore[index]
    if text != f"token {heard.tokens} ":
        raise Broken(f"{text!r} after {heard.tokens} tokens")
    heard.tokens += 1
    heard.moved.set()


async def reaches(heard: Heard, tokens: int, within_s: float = PATIENCE_S) -> None:
    """Wait until a stream has said so much, or has ended."""
    async with asyncio.timeout(within_s):
        while heard.tokens < tokens and not heard.end:
            heard.moved.clear()
            await heard.moved.wait()


async def begin(clients: Clients, count: int, tokens: int) -> list[Heard]:
    """Streams that have all said something; they go on in the background."""
    heard = [Heard() for _ in range(count)]
    for one in heard:
        one.task = asyncio.create_task(clients.stream(tokens, one))
    await asyncio.gather(*(reaches(one, 2) for one in heard))
    for one in heard:
        if one.end:
            await one.over()
    return heard


@dataclass
class Windows:
    """When a service may have had no ready replica: from the call that takes the last one until
    the call that adds one has been answered."""

    spans: list[list[float]] = field(default_factory=list)

    def opens(self) -> None:
        self.spans.append([time.monotonic(), float("inf")])

    def closes(self) -> None:
        if self.spans:
            self.spans[-1][1] = time.monotonic()

    def overlap(self, began: float, ended: float) -> bool:
        return any(began <= end and ended >= start for start, end in self.spans)
