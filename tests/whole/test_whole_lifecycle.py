"""Start, stop, reload: what an operator and a supervisor see of `gatewayd run`."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from conversation import Cut, Wire, get, open_tcp, reply
from conversation import Replica as RawReplica
from waiting import refuses, until
from whole_gateway import Gateway, gatewayd
from whole_replicas import Replica
from whole_streams import Clients, begin
from whole_watch import worker


@pytest.fixture
async def replica(home: Path) -> AsyncIterator[Replica]:
    async with Replica("r0", home / "r0.sock", gap_s=0.03) as replica:
        yield replica


def service(replica: Replica, **more: Any) -> dict[str, Any]:
    return {"name": "llama", "model": "m", "replicas": [f"unix:{replica.path}"], **more}


# --- stop


@pytest.mark.parametrize("router", [None, "sglang"], ids=["direct", "routed"])
async def test_sigterm_lets_running_streams_end_and_takes_nobody_new(
    home: Path, replica: Replica, session: aiohttp.ClientSession, router: str | None
) -> None:
    async with Gateway(home, [service(replica, router=router)], drain_timeout="10s") as gateway:
        if router:
            await gateway.router_pid("llama")
        clients = Clients(gateway.url, "llama", session)
        streams = await begin(clients, 6, tokens=50)
        gateway.signal(signal.SIGTERM)
        told = time.monotonic()
        await until(lambda: refuses(gateway.port), "new connections are refused")
        code, body = await gateway.call("GET", "/readyz")
        assert (code, body) == (503, "not ready\n")
        assert (await gateway.call("GET", "/healthz"))[0] == 200
        status = await gateway.status()
        assert status["draining"] is True
        assert [entry["kind"] for entry in status["listeners"]] == ["admin"]
        assert {await one.over() for one in streams} == {"whole"}
        ended = time.monotonic()
        assert await gateway.exited() == 0
        assert time.monotonic() - ended < 3
        assert ended - told > 0.5  # or there was nothing to wait for


async def test_an_idle_keep_alive_connection_does_not_hold_the_stop(
    home: Path, replica: Replica
) -> None:
    async with Gateway(home, [service(replica)], workers=1, drain_timeout="1h") as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(b"GET /who HTTP/1.1\r\nHost: llama.test\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        gateway.signal(signal.SIGTERM)
        assert await gateway.exited() == 0
        async with asyncio.timeout(30):
            await reader.read()
        writer.close()


async def test_what_does_not_end_in_time_is_cut(
    home: Path, replica: Replica, session: aiohttp.ClientSession
) -> None:
    async with Gateway(home, [service(replica)], workers=1, drain_timeout="1s") as gateway:
        gateway.allow("requests still running after 1 s of draining are ended: 2")
        streams = await begin(Clients(gateway.url, "llama", session), 2, tokens=10_000)
        gateway.signal(signal.SIGTERM)
        told = time.monotonic()
        assert {await one.over() for one in streams} == {"cut"}
        assert 0.8 < time.monotonic() - told < 3
        assert await gateway.exited() == 0
        await until(lambda: replica.running == 0, "the replica was told")


async def test_who_cannot_be_served_to_the_end_is_told_so(home: Path) -> None:
    """Also where nothing but the connection's end says that an answer is whole."""
    replica = RawReplica("r", home / "r.sock")
    await replica.start()
    llama = {"name": "llama", "replicas": [f"unix:{replica.path}"]}
    async with Gateway(home, [llama], workers=1, drain_timeout="100ms") as gateway:
        gateway.allow(r"requests still running after 0\.1 s of draining are ended: 2")
        waiting, streaming = await open_tcp(gateway.port), await open_tcp(gateway.port)
        await waiting.send(get("/waits", host="llama.test"))
        await asked(replica)
        request = get("/streams", host="llama.test")
        await streaming.send(request.replace(b"HTTP/1.1", b"HTTP/1.0"))
        wire = await asked(replica)
        await wire.send(reply(b"a part", framing="chunked").removesuffix(b"0\r\n\r\n"))
        await streaming.upto(b"a part")
        gateway.signal(signal.SIGTERM)
        answer = await waiting.message()
        assert (answer.status, b"(stopping)" in answer.body) == (503, True)
        with pytest.raises(Cut) as cut:
            await streaming.rest()
        assert cut.value.reset
        assert await gateway.exited() == 0
        ended = {line.split()[6]: line.split()[-2] for line in gateway.access_lines()}
        assert ended == {'/waits"': "gateway", '/streams"': "gateway"}
        waiting.close()
    await replica.stop()


async def test_a_killed_worker_leaves_no_part_that_looks_whole(home: Path) -> None:
    replica = RawReplica("r", home / "r.sock")
    await replica.start()
    llama = {"name": "llama", "replicas": [f"unix:{replica.path}"]}
    async with Gateway(home, [llama], workers=1) as gateway:
        gateway.allow("was killed by SIGKILL")
        client = await open_tcp(gateway.port)
        await client.send(get(host="llama.test").replace(b"HTTP/1.1", b"HTTP/1.0"))
        wire = await asked(replica)
        await wire.send(reply(b"a part", framing="chunked").removesuffix(b"0\r\n\r\n"))
        await client.upto(b"a part")
        (pid,) = await gateway.worker_pids()
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(Cut) as cut:
            await client.rest()
        assert cut.value.reset
    await replica.stop()


async def asked(replica: RawReplica) -> Wire:
    """The next request's connection; control connects too, to see whether it can."""
    while True:
        wire = await replica.accept()
        with suppress(Cut):
            await wire.message()
            return wire


async def test_sigint_twice_stops_at_once(
    home: Path, replica: Replica, session: aiohttp.ClientSession
) -> None:
    async with Gateway(home, [service(replica)], workers=1, drain_timeout="1h") as gateway:
        (stream,) = await begin(Clients(gateway.url, "llama", session), 1, tokens=10_000)
        gateway.signal(signal.SIGINT)
        await until(lambda: refuses(gateway.port))
        assert not stream.end
        gateway.signal(signal.SIGINT)
        assert await gateway.exited() == 0
        assert await stream.over() == "cut"


async def test_a_second_gatewayd_on_the_same_state_is_refused(home: Path, replica: Replica) -> None:
    async with Gateway(home, [service(replica)], workers=1) as gateway:
        other = home / "other.yaml"
        text = gateway.file.read_text().replace("admin.sock", "admin2.sock")
        other.write_text(text)
        code, _, err = await gatewayd("run", "-c", str(other))
        assert code == 1
        assert f"pid {gateway.pid}" in err
        assert "state_dir" in err
        assert "Traceback" not in err
        assert (await gateway.call("GET", "/readyz"))[0] == 200


# --- reload


async def reloaded(gateway: Gateway, result: str, count: int) -> None:
    async def counted() -> bool:
        metrics = await gateway.metrics()
        return metrics.total("gatewayd_config_reloads_total", result=result) == count

    await until(counted, f"reload number {count}: {result}")


async def test_sighup_applies_a_difference_and_cuts_nothing(
    home: Path, replica: Replica, session: aiohttp.ClientSession
) -> None:
    async with (
        Replica("r1", home / "r1.sock") as other,
        Gateway(home, [service(replica)]) as gateway,
    ):
        clients = Clients(gateway.url, "llama", session)
        streams = await begin(clients, 4, tokens=60)
        pids = await gateway.worker_pids()
        # The replica that streams is gone from the file, another one is there, a service is new.
        gateway.config["services"] = [
            service(other),
            {"name": "fresh", "replicas": [f"unix:{other.path}"]},
        ]
        gateway.write_file()
        gateway.signal(signal.SIGHUP)
        await reloaded(gateway, "success", 1)
        assert (await clients.post(max_tokens=1))[1]["id"] == "r1"
        status, answer = await Clients(gateway.url, "fresh", session).post(max_tokens=1)
        assert (status, answer["id"]) == (200, "r1")
        assert {await one.over() for one in streams} == {"whole"}
        assert {one.replica for one in streams} == {"r0"}
        assert await gateway.worker_pids() == pids
        assert "reload: services: fresh added" in gateway.read_log()


async def test_reloads_as_typed(
    home: Path, replica: Replica, session: aiohttp.ClientSession
) -> None:
    async with Gateway(home, [service(replica)], workers=1) as gateway:
        gateway.allow("ERROR reload")
        clients = Clients(gateway.url, "llama", session)
        await a_bad_file_changes_nothing(gateway, clients)
        await a_dry_run_prints_the_difference_and_applies_nothing(gateway)
        await what_needs_a_restart_is_said_and_not_half_applied(gateway)
        assert (await clients.post(max_tokens=1))[0] == 200


async def a_bad_file_changes_nothing(gateway: Gateway, clients: Clients) -> None:
    services = gateway.config["services"]
    gateway.config["services"] = [{"name": "llama", "rate_limits": [{"prefix": "/", "rsp": 1}]}]
    gateway.write_file()
    gateway.signal(signal.SIGHUP)
    await reloaded(gateway, "failure", 1)
    admin = ("--admin", f"unix:{gateway.admin_path}")
    code, out, err = await gatewayd("reload", *admin)
    assert (code, out) == (2, "")
    assert "services[0].rate_limits[0].rsp" in err
    assert "rps" in err
    await reloaded(gateway, "failure", 2)
    code, _, err = await gatewayd("reload", "--dry-run", *admin)
    assert code == 2
    assert "rsp" in err
    await reloaded(gateway, "failure", 2)  # nothing was tried
    assert (await clients.post(max_tokens=1))[0] == 200
    assert "services[0].rate_limits[0].rsp" in gateway.read_log()
    gateway.config["services"] = services


async def a_dry_run_prints_the_difference_and_applies_nothing(gateway: Gateway) -> None:
    admin = ("--admin", f"unix:{gateway.admin_path}")
    gateway.config["services"][0]["model"] = "another"
    gateway.config["services"].append({"name": "fresh", "replicas": []})
    gateway.write_file()
    code, out, err = await gatewayd("reload", "--dry-run", *admin)
    assert (code, err) == (0, "")
    assert "services.llama.model: m -> another" in out
    assert "fresh" in out
    assert [s["name"] for s in (await gateway.status())["services"]] == ["llama"]
    code, applied, _ = await gatewayd("reload", *admin)
    assert (code, applied) == (0, out)
    assert [s["name"] for s in (await gateway.status())["services"]] == ["llama", "fresh"]
    assert (await gateway.service("llama"))["model"] == "another"
    code, nothing, _ = await gatewayd("reload", *admin)
    assert (code, nothing) == (0, "nothing changed\n")


async def what_needs_a_restart_is_said_and_not_half_applied(gateway: Gateway) -> None:
    gateway.config["services"][0]["model"] = "yet another"
    gateway.config["workers"] = 2
    gateway.write_file()
    code, _, err = await gatewayd("reload", "-c", str(gateway.file))
    assert code == 2
    assert "workers" in err
    assert "restart" in err
    assert (await gateway.service("llama"))["model"] == "another"


async def test_logs_are_reopened_on_sigusr1(
    home: Path, replica: Replica, session: aiohttp.ClientSession
) -> None:
    async with Gateway(home, [service(replica)]) as gateway:
        clients = Clients(gateway.url, "llama", session)
        await clients.post(max_tokens=1)
        await until(lambda: len(gateway.access_lines()) == 1)
        moved = home / "access.log.1"
        gateway.access_log.rename(moved)
        gateway.signal(signal.SIGUSR1)
        await until(gateway.access_log.exists, "a new file")

        async def all_moved_on() -> bool:
            """Both workers: a line of each is in the new file."""
            async with aiohttp.ClientSession() as fresh:
                await Clients(gateway.url, "llama", fresh).post(max_tokens=1)
            return len({worker(line) for line in gateway.access_lines()}) == 2

        await until(all_moved_on)
        before = len(moved.read_text().splitlines())
        for _ in range(5):
            async with aiohttp.ClientSession() as fresh:
                await Clients(gateway.url, "llama", fresh).post(max_tokens=1)
        await until(lambda: clients.ids[-1] in moved.read_text())
        assert len(moved.read_text().splitlines()) == before
        assert os.stat(gateway.access_log).st_mode & 0o007 == 0
