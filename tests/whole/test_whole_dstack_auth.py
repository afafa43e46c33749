"""A whole gateway whose tokens a dstack server judges, over the sockets that servers make."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from waiting import until
from whole_gateway import Gateway
from whole_replicas import Replica

MEMBERS = {"team": "Bearer of-team", "main": "Bearer of-main"}


@dataclass
class Server:
    """What of a dstack server a gateway sees: who is a member of which project."""

    path: Path
    asked: list[str] = field(default_factory=list)
    delay_s: float = 0.0

    async def answer(self, request: web.Request) -> web.Response:
        await asyncio.sleep(self.delay_s)
        project = request.match_info["project"]
        self.asked.append(project)
        member = request.headers["Authorization"] == MEMBERS.get(project)
        return web.json_response(
            {"project_name": project} if member else {}, status=200 if member else 403
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        app = web.Application()
        app.router.add_post("/api/projects/{project}/get", self.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        self.path.parent.mkdir(exist_ok=True)
        await web.UnixSite(runner, str(self.path)).start()
        try:
            yield
        finally:
            await runner.cleanup()


async def register(gateway: Gateway, project: str, run: str, replica: Replica) -> None:
    base = f"/api/registry/{project}/services"
    body = {"run_name": run, "domain": f"{run}.test", "https": False, "auth": True}
    assert await gateway.call("POST", f"{base}/register", body) == (200, {"status": "ok"})
    where = {"job_id": "j", "socket": str(replica.path)}
    assert (await gateway.call("POST", f"{base}/{run}/replicas/register", where))[0] == 200


async def test_members_are_let_in_whatever_becomes_of_servers(home: Path) -> None:
    servers = home / "server-connections"
    one, two = Server(servers / "1.sock"), Server(servers / "2.sock", delay_s=0.2)
    auth = {"type": "dstack", "server_connections_dir": str(servers), "cache": "0"}
    async with (
        Replica("r0", home / "r0.sock") as replica,
        Gateway(home, auth=auth, workers=2) as gateway,
        aiohttp.ClientSession() as session,
    ):
        gateway.allow("the authority did not answer: no server is connected")
        await register(gateway, "team", "chat", replica)

        async def ask(token: str | None) -> int:
            headers = {"Host": "chat.test"} | ({} if token is None else {"Authorization": token})
            async with session.get(f"{gateway.url}/who", headers=headers) as response:
                assert "WWW-Authenticate" not in response.headers
                if response.status == 503:
                    assert int(response.headers["Retry-After"]) > 0
                return response.status

        async def judge(project: str, token: str) -> int:
            connector = aiohttp.UnixConnector(str(gateway.admin_path))
            async with (
                aiohttp.ClientSession(connector=connector) as admin,
                admin.get(
                    f"http://localhost/api/auth/{project}", headers={"Authorization": token}
                ) as response,
            ):
                answer = await response.json()
                if response.status == 200:
                    assert answer == {"status": "ok"}
                elif response.status == 403:
                    assert answer == {
                        "detail": f"Unauthenticated or unauthorized to access project {project}"
                    }
                return response.status

        assert await ask("Bearer of-team") == 503  # no server has come yet
        assert await judge("team", "Bearer of-team") == 503
        async with one.running(), two.running():
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(str(servers / "dead.sock"))
            for _ in range(4):
                assert await ask("Bearer of-team") == 200
                assert await ask("Bearer of-main") == 403
            assert await ask(None) == 403
            assert {*one.asked, *two.asked} == {"team"}
            assert await judge("team", "bearer of-team") == 200
            assert await judge("main", "Bearer of-team") == 403
            assert await judge("main", "Bearer of-main") == 200
            assert await judge("main", "Basic of-main") == 403
        (servers / "1.sock").unlink(missing_ok=True)
        for _ in range(6):
            assert await ask("Bearer of-stranger") == 503
        async with one.running():
            assert await ask("Bearer of-team") == 200
        assert await ask("Bearer of-team") == 200  # over the connection whose worker knows it
        await until(lambda: counted(gateway), "it was counted")


async def counted(gateway: Gateway) -> bool:
    metrics = await gateway.metrics()
    refused = metrics.total("gatewayd_rejections_total", service="team/chat", reason="auth")
    stale = metrics.total("gatewayd_auth_stale_total", service="team/chat")
    assert stale <= 1
    return stale == 1 and refused == 12


@pytest.mark.parametrize("auth", [None, {"type": "none"}])
async def test_without_auth_only_what_is_registered_is_asked_about(
    home: Path, auth: dict[str, str] | None
) -> None:
    """No dstack server has ever connected to this machine: nobody gets in, and nothing fails."""
    extra = {} if auth is None else {"auth": auth}
    open_one = {"name": "open", "replicas": [f"unix:{home}/r0.sock"]}
    async with (
        Replica("r0", home / "r0.sock") as replica,
        Gateway(home, [open_one], **extra) as gateway,
        aiohttp.ClientSession() as session,
    ):
        gateway.allow("the authority did not answer: no server is connected in /home/ubuntu/dstack")

        async def ask(host: str, **headers: str) -> int:
            async with session.get(
                f"{gateway.url}/who", headers={"Host": host, **headers}
            ) as response:
                return response.status

        if auth is None:
            await register(gateway, "main", "guarded", replica)
            assert await ask("guarded.test") == 403
            assert await ask("guarded.test", Authorization="Bearer x") == 503
        else:
            body = {"run_name": "guarded", "domain": "guarded.test", "auth": True}
            path = "/api/registry/main/services/register"
            status, answer = await gateway.call("POST", path, body)
            assert (status, "configured to ask nobody" in answer["detail"]) == (400, True)
        assert await ask("open.test") == 200
