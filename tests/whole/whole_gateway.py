"""A real `gatewayd run` for tests of the whole, and a look at what it leaves behind.

    async with Gateway(home, services=[...]) as gateway:
        ... gateway.url, await gateway.status(), await gateway.call("POST", path, body) ...

It listens on port zero, its admin address is a Unix socket below `home`. When the block ends it is
told to stop, and everything a supervisor would notice is asserted: exit code 0, no process left,
no unexpected line in its log (`allow` names the expected ones), no file in its temporary folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import yaml
from waiting import PATIENCE_S, until
from whole_watch import INTERNAL, Metrics, gatewayd, processes_of, request_id

__all__ = [
    "INTERNAL",
    "Gateway",
    "Metrics",
    "gatewayd",
    "processes_of",
]

_SUSPICIOUS = re.compile(
    r"Traceback|\b(WARNING|ERROR|CRITICAL)\b|Exception|never (awaited|retrieved)"
)
_PORTS = os.getpid() * 61  # test processes that run at the same time begin at different ports


class Gateway:
    """`extra` is merged into the top of the file. Hosts are `<service>.test`."""

    def __init__(
        self,
        home: Path,
        services: list[dict[str, Any]] | None = None,
        *,
        env: Mapping[str, str] | None = None,
        **extra: Any,
    ) -> None:
        self.home = home
        self.tmp = home / "tmp"
        self.file = home / "gateway.yaml"
        self.access_log = home / "access.log"
        self.pid = 0
        self.port = self.tls_port = 0
        self.log = ""
        self.started_s = 0.0  # from the spawn until /readyz said 200
        self._env = dict(env or {})
        self._allowed: list[str] = []
        self._process: asyncio.subprocess.Process | None = None
        self._log_file = home / "gateway.log"
        self._admin: aiohttp.ClientSession | None = None
        bridge, router = 10001 + _PORTS % 1700, 20000 + _PORTS % 4700
        self.config: dict[str, Any] = {
            "domain": "test",
            "listen": {"http": "127.0.0.1:0", "admin": f"unix:{self.admin_path}"},
            "workers": 2,
            "state_dir": str(home / "state"),
            "log": {"access": str(self.access_log)},
            "drain_timeout": "5s",
            "ports": {"bridge": f"{bridge}-{bridge + 290}", "router": f"{router}-{router + 290}"},
            "services": services or [],
            **extra,
        }

    @property
    def admin_path(self) -> Path:
        return self.home / "admin.sock"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def allow(self, *patterns: str) -> None:
        """Lines of its log that this test brings about."""
        self._allowed += patterns

    # --- its life

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        fine = False
        try:
            await self.stop(judge=error is None)
            fine = error is None
        finally:
            await self.destroy()
            if not fine:
                sys.stderr.write(f"--- log of the gateway\n{self.read_log()}---\n")

    def write_file(self) -> None:
        self.file.write_text(yaml.safe_dump(self.config, sort_keys=False))

    async def start(self) -> None:
        self.write_file()
        await self.spawn()
        await self.until_ready()

    async def spawn(self) -> asyncio.subprocess.Process:
        self.tmp.mkdir(exist_ok=True)
        began = time.monotonic()
        with self._log_file.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "gatewayd", "run", "-c", str(self.file)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "TMPDIR": str(self.tmp), **self._env},
            )
        self._began = began
        self.pid = self._process.pid
        return self._process

    async def until_ready(self) -> None:
        async def ready() -> bool:
            assert self._process is not None
            assert self._process.returncode is None, self.read_log()
            try:
                status, _ = await self.call("GET", "/readyz")
            except aiohttp.ClientError:
                return False
            return status == 200

        await until(ready, "ready")
        self.started_s = time.monotonic() - self._began
        ports = {
            entry["kind"]: int(entry["address"].rpartition(":")[2])
            for entry in (await self.status())["listeners"]
            if entry["kind"] in ("http", "https")
        }
        self.port = ports["http"]
        self.tls_port = ports.get("https", 0)

    async def exited(self, within_s: float = PATIENCE_S) -> int:
        assert self._process is not None
        async with asyncio.timeout(within_s):
            return await self._process.wait()

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    async def stop(self, *, judge: bool = True) -> None:
        """SIGTERM, unless it has ended already, and a look at what is left."""
        assert self._process is not None
        await self.close_admin()
        if self._process.returncode is None:
            self.signal(signal.SIGTERM)
        try:
            code = await self.exited()
        except TimeoutError:
            code = -1
        if judge:
            assert code == 0, (code, self.read_log())
            self.judge()

    def judge(self) -> None:
        assert not processes_of(self.tmp), processes_of(self.tmp)
        suspicious = self.suspicious_lines()
        assert not suspicious, suspicious
        assert list(self.tmp.iterdir()) == []
        assert not self.admin_path.exists()

    async def destroy(self) -> None:
        """Whatever still runs ends now."""
        await self.close_admin()
        for pid in processes_of(self.tmp):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._process is not None:
            await self._process.wait()

    def read_log(self) -> str:
        return self._log_file.read_text() if self._log_file.exists() else ""

    def suspicious_lines(self) -> list[str]:
        return [
            line
            for line in self.read_log().splitlines()
            if _SUSPICIOUS.search(line) and not any(re.search(p, line) for p in self._allowed)
        ]

    def access_lines(self) -> list[str]:
        """Those that are written whole."""
        if not self.access_log.exists():
            return []
        return self.access_log.read_text().rpartition("\n")[0].splitlines()

    async def ways(self, request_ids: list[str]) -> list[str]:
        """How requests went, by the access log: direct, through, steered, fallback."""

        def found() -> dict[str, str]:
            return {request_id(line): line.split()[4] for line in self.access_lines()}

        await until(lambda: found().keys() >= set(request_ids), "their access lines")
        return [found()[request_id] for request_id in request_ids]

    # --- its admin address

    async def close_admin(self) -> None:
        """Forget connections to it; the next call opens new ones."""
        if self._admin is not None:
            await self._admin.close()
            self._admin = None

    async def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """(status, JSON or text)."""
        if self._admin is None:
            connector = aiohttp.UnixConnector(str(self.admin_path), limit=0)
            self._admin = aiohttp.ClientSession("http://localhost", connector=connector)
        async with self._admin.request(method, path, json=body) as response:
            text = await response.text()
            if response.content_type == "application/json":
                return response.status, json.loads(text)
            return response.status, text

    async def change(self, path: str, body: Any = None) -> dict[str, Any]:
        """A registry call that must succeed; `path` is what follows the project's services."""
        status, answer = await self.call("POST", f"/api/registry/main/services/{path}", body or {})
        assert status == 200, (path, answer)
        return dict(answer)

    async def add(self, service: str, replica_id: str, socket: Path | str) -> None:
        await self.change(f"{service}/replicas/register", {"id": replica_id, "socket": str(socket)})

    async def remove(self, service: str, replica_id: str) -> None:
        await self.change(f"{service}/replicas/{replica_id}/unregister")

    async def drain(self, service: str, replica_id: str, timeout: float) -> dict[str, Any]:
        path = f"{service}/replicas/{replica_id}/drain"
        return await self.change(path, {"timeout": timeout})

    async def status(self) -> dict[str, Any]:
        code, answer = await self.call("GET", "/api/status")
        assert code == 200, answer
        return dict(answer)

    async def service(self, name: str) -> dict[str, Any]:
        (found,) = [s for s in (await self.status())["services"] if s["name"] == name]
        return dict(found)

    async def in_flight(self, service: str) -> dict[str, int]:
        return {r["id"]: r["in_flight"] for r in (await self.service(service))["replicas"]}

    async def replica_states(self, service: str) -> dict[str, str]:
        return {r["id"]: r["state"] for r in (await self.service(service))["replicas"]}

    async def router_pid(self, service: str) -> int:
        """Once it serves every replica that is wanted, and every worker knows."""

        async def serving() -> int:
            found = await self.service(service)
            wanted = sorted(r["id"] for r in found["replicas"] if r["state"] == "up")
            router = found["router"]
            whole = router["endpoint"] and wanted == router["targets"]["serving"]
            return int(router["pid"]) if whole else 0

        async def ready() -> bool:
            return (await self.call("GET", "/readyz"))[0] == 200

        pid = await until(serving, f"the router of {service} serves all its targets")
        await until(ready, "every worker has the snapshot that says so")
        return pid

    async def metrics(self) -> Metrics:
        code, text = await self.call("GET", "/metrics")
        assert code == 200
        return Metrics(text)

    async def worker_pids(self) -> list[int]:
        return [worker["pid"] for worker in (await self.status())["workers"]]
