"""A gateway driven by the client of a real dstack server (make test-dstack)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from ssh_server import SshServer, ssh_processes
from waiting import until
from whole_gateway import Gateway
from whole_replicas import Replica

pytestmark = pytest.mark.dstack

PYTHON = os.environ.get("GATEWAYD_DSTACK_PYTHON", "")
CLIENT = Path(__file__).parent.parent / "dstack_client.py"


class DstackServer:
    """The part of one that talks to gateways. `call` gives what its client gave."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def tell(self, call: str, **arguments: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"call": call, **arguments}).encode() + b"\n")
        async with asyncio.timeout(60):
            line = await self._process.stdout.readline()
        assert line, "its client failed with what it does not expect of a gateway"
        return dict(json.loads(line))

    async def call(self, call: str, **arguments: Any) -> Any:
        answer = await self.tell(call, **arguments)
        if "unknown" in answer:
            return None  # an older release
        assert "error" not in answer, answer
        return answer["result"]


@contextlib.asynccontextmanager
async def dstack_server(admin: Path) -> AsyncIterator[DstackServer]:
    process = await asyncio.create_subprocess_exec(
        *(PYTHON, str(CLIENT), str(admin)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=admin.parent,
        env={**os.environ, "DSTACK_SERVER_DIR": str(admin.parent), "HOME": str(admin.parent)},
    )
    try:
        yield DstackServer(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        async with asyncio.timeout(30):
            await process.wait()


@pytest.fixture
async def replica() -> AsyncIterator[Replica]:
    async with Replica("a") as replica:
        yield replica


def service(run_id: str, key: str, router: dict[str, Any] | None) -> dict[str, Any]:
    model = {"type": "chat", "name": "tiny", "format": "openai", "prefix": "/v1"}
    limit = {"prefix": "/", "key": {"type": "ip_address"}, "rps": 100, "burst": 50}
    return {
        "project": "Main",
        "run_id": run_id,
        "run_name": "llama",
        "domain": "llama.test",
        "service_https": False,
        "gateway_https": False,
        "auth": False,
        "client_max_body_size": 1 << 20,
        "read_timeout": 300,
        "options": {"openai": {"model": model}},
        "rate_limits": [limit],
        "ssh_private_key": key,
        "router": router,
    }


@pytest.mark.parametrize(
    "router", [None, {"type": "sglang", "policy": "cache_aware", "pd_disaggregation": False}]
)
async def test_a_run_from_its_start_to_its_end(
    home: Path, sshd: SshServer, replica: Replica, router: dict[str, Any] | None
) -> None:
    """Releases from 0.21 on do not send the router."""
    run_id, job_id = uuid.uuid4().hex, uuid.uuid4().hex
    job = {
        "project": "Main",
        "run_name": "llama",
        "job_id": job_id,
        "app_port": replica.port,
        "ssh_host": sshd.destination,
        "ssh_port": sshd.port,
        "key": sshd.key.reveal(),
    }
    body = {"model": "tiny", "max_tokens": 2, "messages": [{"role": "user", "content": "x"}]}
    async with (
        Gateway(home) as gateway,
        dstack_server(gateway.admin_path) as dstack,
        aiohttp.ClientSession(gateway.url) as clients,
    ):
        gateway.allow("SshTunnel|refused|register|replica")
        assert (await dstack.call("info"))["version"]
        await dstack.call("submit_gateway_config")
        registration = service(run_id, sshd.key.reveal(), router)
        await dstack.call("register_service", **registration)
        twice = await dstack.tell("register_service", **registration)
        assert twice["error"].endswith("Service main/llama is already registered")
        await dstack.call("register_replica", **job)
        again = await dstack.tell("register_replica", **job)
        assert "already exists in service" in again["error"]
        closed = {**job, "job_id": uuid.uuid4().hex, "ssh_port": 9}
        failed = await dstack.tell("register_replica", **closed)
        assert "Cannot register replica" in failed["error"]

        listed = await dstack.call("list_services")
        if listed is not None:
            assert [s["run_name"] for s in listed] == ["llama"]
            assert [r["id"] for r in listed[0]["replicas"]] == [job_id]
            known = listed[0]["id"]
            if known is None:
                await dstack.call("set_service_id", project="main", run_name="llama", run_id=run_id)
            assert uuid.UUID((await dstack.call("list_services"))[0]["id"]).hex == run_id

        headers = {"Host": "llama.test"}
        async with clients.post("/v1/chat/completions", json=body, headers=headers) as answer:
            assert answer.status == 200, await answer.text()

        async def counted() -> bool:
            (stats,) = await dstack.call("collect_stats")
            assert (stats["project_name"], stats["run_name"]) == ("main", "llama")
            return bool(stats["stats"]["30"]["requests"] == 1)

        await until(counted, "the request in the statistics")
        await dstack.call("unregister_replica", project="main", run_name="llama", job_id=job_id)
        async with clients.get("/v1/models", headers=headers) as answer:
            assert answer.status == 503
        await until(lambda: not ssh_processes(str(home)), "its tunnel is closed")
        await dstack.call("unregister_service", project="main", run_name="llama")
        assert await dstack.call("list_services") in ([], None)
        gone = await dstack.tell("unregister_service", project="main", run_name="llama")
        assert "error" in gone
