"""Replicas behind real ssh servers: of the file, registered, broken, unregistered in the middle of
a stream, and brought back after a kill."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from ssh_server import SshServer, ssh_processes
from waiting import until
from whole_gateway import Gateway
from whole_replicas import Replica
from whole_streams import Clients, begin

SERVICES = "/api/registry/main/services"


@pytest.fixture
async def replica() -> AsyncIterator[Replica]:
    async with Replica("a", stepped=True) as replica:
        yield replica


def registration(sshd: SshServer) -> dict[str, Any]:
    return {
        "run_name": "run",
        "domain": "run.test",
        "https": False,
        "auth": False,
        "client_max_body_size": 1 << 20,
        "options": {},
        "ssh_private_key": sshd.key.reveal(),
    }


def over_ssh(sshd: SshServer, port: int) -> dict[str, Any]:
    """Through a head proxy with a key of its own, as control planes send it."""
    user, _, host = sshd.destination.partition("@")
    head = {"username": user, "hostname": host, "port": sshd.port}
    return {
        "job_id": "a",
        "app_port": port,
        "ssh_host": sshd.destination,
        "ssh_port": sshd.port,
        "ssh_proxy": None,
        "ssh_proxy_private_key": None,
        "ssh_head_proxy": head,
        "ssh_head_proxy_private_key": sshd.key.reveal(),
    }


async def state_of(gateway: Gateway, service: str) -> dict[str, Any]:
    (replica,) = (await gateway.service(service))["replicas"]
    return dict(replica)


async def test_a_stream_ends_whole_while_its_replica_is_unregistered(
    home: Path, sshd: SshServer, replica: Replica
) -> None:
    async with Gateway(home) as gateway, aiohttp.ClientSession() as session:
        await gateway.change("register", registration(sshd))
        await gateway.change("run/replicas/register", over_ssh(sshd, replica.port))
        assert len(ssh_processes(str(home))) == 2
        found = await state_of(gateway, "run")
        assert found["state"] == "up"
        assert found["tunnel"].endswith(f"to port {replica.port}")
        clients = Clients(gateway.url, "run", session)
        replica.step(2)
        (stream,) = await begin(clients, 1, 5)
        async with asyncio.timeout(30):  # it does not wait for the stream
            await gateway.remove("run", "a")
        assert (await gateway.service("run"))["replicas"] == []
        async with session.get(f"{gateway.url}/", headers={"Host": "run.test"}) as refused:
            assert refused.status == 503
        assert len(ssh_processes(str(home))) == 2
        replica.step(3)
        assert await stream.over() == "whole"
        await until(lambda: not ssh_processes(str(home)), "the tunnel is closed")
        await until(lambda: not list((home / "state" / "ssh").iterdir()), "and its files are gone")


async def test_at_the_drain_deadline_a_tunnel_is_closed_all_the_same(
    home: Path, sshd: SshServer, replica: Replica
) -> None:
    extra: Any = {"drain_timeout": "500ms"}
    async with Gateway(home, **extra) as gateway, aiohttp.ClientSession() as session:
        gateway.allow("tunnel of replica a of main/run cuts 1 requests", "Traceback|reset|closed")
        await gateway.change("register", registration(sshd))
        await gateway.change("run/replicas/register", over_ssh(sshd, replica.port))
        replica.step(2)
        (stream,) = await begin(Clients(gateway.url, "run", session), 1, 5)
        await gateway.change("run/unregister")
        assert await stream.over() == "cut"
        await until(lambda: not ssh_processes(str(home)), "the tunnel is closed")


async def test_a_replica_of_the_file_is_out_while_its_server_is_away(
    home: Path, sshd: SshServer, replica: Replica
) -> None:
    """The gateway starts without it, and a request waits until the tunnel is up."""
    ssh = {
        "host": sshd.destination,
        "port": sshd.port,
        "app_port": replica.port,
        "identity": sshd.identity,
    }
    proxied = ssh | {"proxy": [{k: ssh[k] for k in ("host", "port", "identity")}]}
    services = [{"name": "llama", "replicas": [{"id": "a", "ssh": proxied}]}]
    await sshd.stop()
    replica.step(100)
    async with Gateway(home, services) as gateway, aiohttp.ClientSession() as session:
        gateway.allow("tunnel of a of main/llama (is down|is up)")
        clients = Clients(gateway.url, "llama", session)

        async def refused() -> bool:
            return "refused" in ((await state_of(gateway, "llama"))["tunnel_fault"] or "")

        await until(refused, "ssh's words in the status")
        assert (await state_of(gateway, "llama"))["state"] == "connecting"
        metrics = await gateway.metrics()
        assert metrics.total("gatewayd_replicas", service="llama", state="connecting") == 1
        waiting = asyncio.create_task(clients.post())
        await sshd.start()
        assert (await waiting)[0] == 200
        await sshd.stop()

        async def state(wanted: str) -> bool:
            return bool((await state_of(gateway, "llama"))["state"] == wanted)

        await until(lambda: state("connecting"), "out of rotation")
        await sshd.start()
        await until(lambda: state("up"), "in rotation again")
        assert (await clients.post())[0] == 200
        # A reload closes what the file no longer has, and opens what it has now.
        gateway.config["services"] = [{"name": "llama"}]
        gateway.write_file()
        status, _ = await gateway.call("POST", "/api/reload")
        assert status == 200
        await until(lambda: not ssh_processes(str(home)), "closed")
        gateway.config["services"] = [{"name": "llama", "replicas": [{"id": "b", "ssh": ssh}]}]
        gateway.write_file()
        await gateway.call("POST", "/api/reload")
        await until(lambda: state("up"), "another way to it")
        assert (await clients.post())[0] == 200


async def test_a_killed_control_leaves_no_ssh_and_its_successor_opens_all_again(
    home: Path, sshd: SshServer, replica: Replica
) -> None:
    replica.step(100)
    async with Gateway(home) as gateway, aiohttp.ClientSession() as session:
        gateway.allow("control is gone; serving on", "pid .* of an earlier control drains")
        await gateway.change("register", registration(sshd))
        await gateway.change("run/replicas/register", over_ssh(sshd, replica.port))
        assert (await Clients(gateway.url, "run", session).post())[0] == 200
        await gateway.close_admin()
        gateway.signal(signal.SIGKILL)
        await gateway.exited()
        await until(lambda: not ssh_processes(str(home)), "no ssh is left")
        await gateway.spawn()
        await gateway.until_ready()
        async with aiohttp.ClientSession() as again:
            assert (await Clients(gateway.url, "run", again).post())[0] == 200
        assert len(ssh_processes(str(home))) == 2


async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass  # ssh was ended
    finally:
        writer.close()


async def test_a_registration_that_runs_is_answered_before_the_gateway_ends(
    home: Path, sshd: SshServer, replica: Replica
) -> None:
    """Who registers replicas takes a cut connection for a refusal, and ends the replica."""
    gate = asyncio.Event()
    ended: list[asyncio.Event] = []

    async def slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ended.append(end := asyncio.Event())
        await gate.wait()
        there = await asyncio.open_connection("127.0.0.1", sshd.port)
        await asyncio.gather(pass_on(reader, there[1]), pass_on(there[0], writer))
        end.set()

    slow = await asyncio.start_server(slowly, "127.0.0.1", 0)
    port = slow.sockets[0].getsockname()[1]
    async with slow, Gateway(home) as gateway:
        await gateway.change("register", registration(sshd))
        body = over_ssh(sshd, replica.port) | {"ssh_head_proxy": None, "ssh_port": port}
        path = f"{SERVICES}/run/replicas/register"
        call = asyncio.create_task(gateway.call("POST", path, body))
        await until(lambda: bool(ssh_processes(str(home))), "ssh connects")
        gateway.signal(signal.SIGTERM)
        await until(lambda: "answered first" in gateway.read_log(), "it is told to stop")
        gate.set()
        assert await call == (200, {"status": "ok"})
        assert await gateway.exited() == 0
        await gateway.close_admin()
        await gateway.spawn()
        await gateway.until_ready()
        _, listed = await gateway.call("GET", "/api/services/list")
        assert listed["services"][0]["replicas"] == [{"id": "a"}]
    for end in ended:
        await end.wait()


async def test_what_ssh_says_is_what_the_registry_answers(
    home: Path, sshd: SshServer, replica: Replica
) -> None:
    async with Gateway(home) as gateway:
        await gateway.change("register", registration(sshd))
        body = over_ssh(sshd, replica.port) | {"ssh_head_proxy": None, "ssh_port": 1}
        status, answer = await gateway.call("POST", f"{SERVICES}/run/replicas/register", body)
        assert status == 400
        assert answer == {
            "detail": "Cannot register replica a in service main/run: "
            "ssh: connect to host 127.0.0.1 port 1: Connection refused"
        }
        assert (await gateway.service("run"))["replicas"] == []
