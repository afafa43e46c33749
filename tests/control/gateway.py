"""A control in this process, its workers scripted, and a client of its admin address."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from plant import SCRIPT

from gatewayd.config.load import load_config
from gatewayd.control.control import Control
from gatewayd.control.pulse import Pulse

FILE = """
domain: example.com
listen: {{http: "127.0.0.1:0", admin: "unix:{home}/admin.sock"}}
workers: 2
state_dir: {home}/state
services:
  - name: llama
    replicas: [{{id: a, socket: {home}/a.sock}}]
"""


@dataclass
class Gateway:
    control: Control
    home: Path
    http: aiohttp.ClientSession
    base: str

    @property
    def file(self) -> Path:
        return self.home / "gateway.yaml"

    async def call(
        self, method: str, path: str, body: object = None, **more: Any
    ) -> tuple[int, Any]:
        if body is not None:
            more["json"] = body
        async with self.http.request(method, self.base + path, **more) as response:
            if response.content_type == "application/json":
                return response.status, await response.json()
            return response.status, await response.text()

    async def get(self, path: str, **more: Any) -> tuple[int, Any]:
        return await self.call("GET", path, **more)

    async def post(self, path: str, body: object = None, **more: Any) -> tuple[int, Any]:
        return await self.call("POST", path, body, **more)


def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty times a second."""
    monkeypatch.setattr("gatewayd.control.parts.Pulse", partial(Pulse, 0.02))


def write(home: Path, text: str = FILE) -> Path:
    path = home / "gateway.yaml"
    path.write_text(text.format(home=home))
    return path


@asynccontextmanager
async def running(
    home: Path,
    text: str = FILE,
    *,
    behaviour: str = "ack",
    base: Callable[[Control], str] | None = None,
) -> AsyncIterator[Gateway]:
    path = write(home, text)

    def load() -> Any:
        return load_config(str(path), {})

    control = Control(
        load(),
        load=load,
        environ={},
        ahead=[],
        argv=lambda role, fd: (sys.executable, str(SCRIPT), behaviour, str(fd)),
    )
    try:
        async with asyncio.timeout(30):
            await control.start()
        connector = None if base else aiohttp.UnixConnector(str(home / "admin.sock"))
        async with aiohttp.ClientSession(connector=connector) as http:
            url = base(control) if base else "http://admin"
            yield Gateway(control, home, http, url)
    finally:
        await control.dismantle()
