"""Prefills and decodes for tests of the whole, which check what they are told about each other.

    engines = Engines()
    async with engines.add("p0"), engines.add("d0"), ...:
        ...; assert engines.faults == []

Each has an address of its own on the loopback, so that a wrong host is seen. A decode answers when
the prefill that it is told to meet has been given the same request, as a real one waits for what
that prefill hands over.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from fake_engine import Recorded
from processes import gone
from waiting import until
from whole_gateway import Gateway
from whole_replicas import Replica

_MEET_S = 10.0


@dataclass
class Engines:
    faults: list[str] = field(default_factory=list)
    all: dict[str, Engine] = field(default_factory=dict)

    def add(self, name: str, **more: Any) -> Engine:
        """`p` and a number is a prefill, `d` and a number a decode."""
        role, net = ("prefill", 1) if name[0] == "p" else ("decode", 2)
        host = f"127.0.{net}.{int(name[1:]) + 1}"
        engine = self.all[name] = Engine(name, host=host, role=role, engines=self, **more)
        return engine

    def prefill_at(self, host: object, port: object) -> Engine | None:
        for engine in self.all.values():
            if (engine.host, engine.bootstrap_port) == (host, port) and engine.role == "prefill":
                return engine
        return None


@dataclass
class Engine(Replica):
    """`rooms` are those it was told of: room to the body it came with."""

    role: str = "prefill"
    engines: Engines = field(default_factory=Engines)
    ready: bool = True
    info_path: str = "/server_info"
    rooms: dict[int, dict[str, Any]] = field(default_factory=dict)
    _told: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def bootstrap_port(self) -> int:
        """One of its own, that nobody here listens on."""
        return 8990 + int(self.host.rpartition(".")[2])

    @property
    def entry(self) -> dict[str, str]:
        """In the file."""
        return {"id": self.name, "url": self.url}

    async def _answer(self, request: web.Request, recorded: Recorded) -> web.StreamResponse:
        if request.path in ("/server_info", "/get_server_info"):
            if request.path != self.info_path:
                return web.json_response({"detail": "Not Found"}, status=404)
            return web.json_response(
                self._info()
                | {"status": "ready" if self.ready else "starting"}
                | {"disaggregation_mode": self.role if self.role != "regular" else "null"}
                | {"disaggregation_bootstrap_port": self.bootstrap_port}
            )
        if request.method == "POST" and not self.manner:
            await self._meet(recorded)
            if request.path == "/v1/completions":
                return web.json_response({"id": self.name, "object": "text_completion"})
        return await super()._answer(request, recorded)

    async def _meet(self, recorded: Recorded) -> None:
        body = recorded.json
        told = [body.get(f"bootstrap_{what}") for what in ("host", "port", "room")]
        if self.role == "regular" or None in told:
            self._fault(f"gets {recorded.path} with {told}")
            return
        batch = all(isinstance(value, list) for value in told)
        for host, port, room in zip(*told, strict=True) if batch else (told,):
            prefill = self.engines.prefill_at(host, port)
            if prefill is None:
                self._fault(f"is to meet {host}:{port}, where nobody is")
            elif self.role == "prefill":
                self._note(room, body, prefill)
            else:
                await self._fetch(room, body, prefill)

    def _note(self, room: int, body: dict[str, Any], prefill: Engine) -> None:
        if prefill is not self:
            self._fault(f"is told to be {prefill.name}")
        if room in self.rooms:
            self._fault(f"is given room {room} twice")
        self.rooms[room] = body
        told, self._told = self._told, asyncio.Event()
        told.set()

    async def _fetch(self, room: int, body: dict[str, Any], prefill: Engine) -> None:
        try:
            async with asyncio.timeout(_MEET_S):
                while room not in prefill.rooms:
                    await prefill._told.wait()
        except TimeoutError:
            self._fault(f"waits for {prefill.name} in vain")
            return
        if prefill.rooms[room] != body:
            self._fault(f"has another request than {prefill.name}")

    def _fault(self, what: str) -> None:
        self.engines.faults.append(f"{self.role} {self.name} {what}")


def pd_service(*engines: Engine, **more: Any) -> dict[str, Any]:
    return {
        "name": "chat",
        "router": {"type": "sglang", "pd_disaggregation": True, **more},
        "replicas": [engine.entry for engine in engines],
    }


@dataclass
class Chat:
    """Everybody who talks to the service."""

    gateway: Gateway
    session: aiohttp.ClientSession

    def ask(
        self, path: str = "/v1/chat/completions", **body: Any
    ) -> aiohttp.client._RequestContextManager:
        if path == "/v1/chat/completions":
            body.setdefault("messages", [{"role": "user", "content": "hi"}])
        data = json.dumps({"model": "fake-model", **body}).encode()
        headers = {"Host": "chat.test", "Content-Type": "application/json"}
        return self.session.post(self.gateway.url + path, data=io.BytesIO(data), headers=headers)

    async def post(
        self, path: str = "/v1/chat/completions", **body: Any
    ) -> tuple[int, dict[str, Any] | str]:
        async with self.ask(path, **body) as response:
            text = await response.text()
            is_json = response.content_type == "application/json"
            return response.status, json.loads(text) if is_json else text

    async def works(self) -> bool:
        return (await self.post())[0] == 200

    async def until_works(self) -> None:
        await until(self.works, "a request is served")

    async def until_roles(self, **roles: str) -> None:
        async def told() -> bool:
            return await self.roles() == roles

        await until(told, f"{roles}")

    async def kill_router(self) -> None:
        pid = (await self.gateway.service("chat"))["router"]["pid"]
        os.kill(pid, signal.SIGKILL)
        await until(lambda: gone(pid))

    async def until_lacks(self, *roles: str) -> None:
        async def lacks() -> bool:
            service = await self.gateway.service("chat")
            return service["router"]["lacks"] == list(roles) and not await self.works()

        await until(lacks, f"{roles} are missed")

    async def roles(self) -> dict[str, str]:
        replicas = (await self.gateway.service("chat"))["replicas"]
        return {replica["id"]: replica["role"] for replica in replicas}


CUT = (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)


@asynccontextmanager
async def chatting(
    home: Path, *engines: Engine, late: tuple[Engine, ...] = (), **router: Any
) -> AsyncIterator[Chat]:
    """A gateway before them; those that are `late` are in its file and do not listen yet."""
    async with AsyncExitStack() as stack:
        for engine in engines:
            await stack.enter_async_context(engine)
        gateway = Gateway(home, [pd_service(*engines, *late, **router)])
        await stack.enter_async_context(gateway)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        yield Chat(gateway, session)
        assert not engines[0].engines.faults


async def chosen(one: Engine, other: Engine) -> tuple[Engine, Engine]:
    """The one that works on the only request that runs, and the other."""
    await until(lambda: one.running + other.running == 1)
    return (one, other) if one.running else (other, one)
