"""A real `gatewayd run` and what it left, for tests of control."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import aiohttp
from waiting import until

FILE = """
domain: example.com
listen: {{http: "{http}", admin: "unix:{home}/admin.sock"}}
workers: 2
state_dir: {home}/state
drain_timeout: 5s
log: {{access: {home}/access.log}}
services:
  - name: llama
    domain: [llama.example.com, 127.0.0.1]
    replicas: [{{id: a, socket: {home}/a.sock}}]
"""


class Run:
    """One `gatewayd run` and what it left; `text` is its standard error so far."""

    def __init__(self, home: Path, *, http: str = "127.0.0.1:0", text: str = FILE) -> None:
        self.home = home
        self.file = home / "gateway.yaml"
        self.file.write_text(text.format(home=home, http=http))
        self.stderr = home / f"stderr.{os.urandom(4).hex()}"
        self.popen: subprocess.Popen[bytes] | None = None

    @property
    def text(self) -> str:
        return self.stderr.read_text() if self.stderr.exists() else ""

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self.popen is not None
        return self.popen

    def spawn(self, **environ: str) -> Self:
        with self.stderr.open("wb") as stderr:
            self.popen = subprocess.Popen(
                (sys.executable, "-m", "gatewayd", "run", "-c", str(self.file)),
                stderr=stderr,
                env=os.environ | environ,
            )
        return self

    async def ready(self) -> Self:
        await until(lambda: " ready: http " in self.text or self.process.poll() is not None)
        assert " ready: http " in self.text, self.text
        return self

    @property
    def address(self) -> str:
        return self.text.partition(" ready: http ")[2].partition(",")[0]

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    async def exit_code(self) -> int:
        await until(lambda: self.process.poll() is not None, lambda: self.text)
        assert self.process.returncode is not None
        return self.process.returncode

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    async def status(self) -> dict[str, Any]:
        connector = aiohttp.UnixConnector(str(self.home / "admin.sock"))
        async with (
            aiohttp.ClientSession(connector=connector) as client,
            client.get("http://admin/api/status") as response,
        ):
            answer: dict[str, Any] = await response.json()
            return answer

    async def until_status(self, condition: Callable[[dict[str, Any]], bool]) -> None:
        async def holds() -> bool:
            return condition(await self.status())

        await until(holds, lambda: self.text)

    def recorded(self) -> list[int]:
        """The pids of the data plane."""
        return [p["pid"] for p in json.loads((self.home / "state" / "workers.json").read_text())]

    def destroy(self) -> None:
        pids = [self.process.pid] if self.process.poll() is None else []
        with contextlib.suppress(FileNotFoundError):
            pids += self.recorded()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


MakeRun = Callable[..., Run]


BODY = {
    "model": "m",
    "stream": True,
    "max_tokens": 40,
    "messages": [{"role": "user", "content": "x"}],
}


async def streamed(client: aiohttp.ClientSession, url: str) -> str:
    async with client.post(f"{url}/v1/chat/completions", json=BODY) as response:
        assert response.status == 200
        return await response.text()
