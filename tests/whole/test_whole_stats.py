"""What a scaler is told, by a whole gateway: while streams run, after deaths, after restarts."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from processes import alive
from waiting import until
from whole_gateway import Gateway, processes_of
from whole_replicas import Replica
from whole_streams import Clients, begin

WINDOWS = ["30", "60", "300"]


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session:
        yield session


async def stats(gateway: Gateway, run: str = "llama") -> dict[str, Any]:
    status, answer = await gateway.call("GET", "/api/stats/collect")
    assert status == 200
    (found,) = [entry for entry in answer if entry["run_name"] == run]
    assert set(found) == {"project_name", "run_name", "stats"}
    assert found["project_name"] == "main"
    assert list(found["stats"]) == WINDOWS
    return dict(found["stats"])


async def requests(gateway: Gateway, run: str = "llama") -> list[int]:
    return [window["requests"] for window in (await stats(gateway, run)).values()]


async def ask(clients: Clients, count: int, status: int = 200) -> None:
    """Short ones, which need no step of the replica."""
    for _ in range(count):
        host = {"Host": f"{clients.service}.test"}
        async with clients.session.get(f"{clients.url}/who", headers=host) as response:
            assert response.status == status


def llama(replica: Replica) -> dict[str, Any]:
    return {"name": "llama", "model": "m", "replicas": [f"unix:{replica.path}"]}


async def test_streams_are_load_while_they_run_and_each_counts_once(
    home: Path, session: aiohttp.ClientSession
) -> None:
    replica = Replica("r0", home / "r0.sock", gap_s=0.01)
    async with replica, Gateway(home, [llama(replica), {"name": "asleep"}]) as gateway:
        nothing = {window: {"requests": 0, "request_time": 0.0} for window in WINDOWS}
        assert await stats(gateway) == await stats(gateway, "asleep") == nothing
        clients = Clients(gateway.url, "llama", session)
        streams = await begin(clients, 4, tokens=50)
        replica.gate.clear()
        assert await requests(gateway) == [4, 4, 4]
        gateway.config["stats"] = {"count": "finished"}
        gateway.write_file()
        assert (await gateway.call("POST", "/api/reload"))[0] == 200
        assert await stats(gateway) == nothing
        gateway.config["stats"] = {"count": "started"}
        gateway.write_file()
        assert (await gateway.call("POST", "/api/reload"))[0] == 200
        assert await requests(gateway) == [4, 4, 4]
        replica.gate.set()
        assert {await one.over() for one in streams} == {"whole"}
        del gateway.config["stats"]
        gateway.write_file()
        assert (await gateway.call("POST", "/api/reload"))[0] == 200
        found = await stats(gateway)
        assert [w["requests"] for w in found.values()] == [4, 4, 4]
        assert 0 < found["30"]["request_time"] < 20
        # Nobody is there, and somebody is wanted.
        await ask(Clients(gateway.url, "asleep", session), 3, status=503)
        assert await requests(gateway, "asleep") == [3, 3, 3]


async def test_a_registered_service_is_counted_and_inherits(
    home: Path, session: aiohttp.ClientSession
) -> None:
    replica = Replica("r0", home / "r0.sock")
    body = {"run_name": "run", "domain": "run.test", "https": False, "auth": False}
    async with replica, Gateway(home) as gateway:
        assert await gateway.call("GET", "/api/stats/collect") == (200, [])
        clients = Clients(gateway.url, "run", session)
        await gateway.change("register", body)
        await ask(clients, 1, status=503)
        await gateway.add("run", "a", replica.path)
        await ask(clients, 2)
        assert await requests(gateway, "run") == [3, 3, 3]
        assert (await gateway.service("run"))["requests_last_minute"] == 3
        await gateway.change("run/unregister")
        assert await gateway.call("GET", "/api/stats/collect") == (200, [])
        await gateway.change("register", body)
        assert await requests(gateway, "run") == [3, 3, 3]


async def test_a_killed_worker_takes_no_request_out_of_the_statistics(
    home: Path, session: aiohttp.ClientSession
) -> None:
    replica = Replica("r0", home / "r0.sock", gap_s=0.01)
    async with replica, Gateway(home, [llama(replica)]) as gateway:
        gateway.allow("was killed by SIGKILL")
        clients = Clients(gateway.url, "llama", session)
        for number in range(3):
            await ask(clients, 10)
            streams = await begin(clients, 5, tokens=50)
            replica.gate.clear()
            assert await requests(gateway) == [15 * (number + 1)] * 3
            pids = await gateway.worker_pids()
            for pid in pids:  # at once: nothing has been reported since the last post
                os.kill(pid, signal.SIGKILL)
            assert {await one.over() for one in streams} == {"cut"}
            replica.gate.set()

            async def replaced(old: list[int] = pids) -> bool:
                workers = (await gateway.status())["workers"]
                return all(w["state"] == "ready" and w["pid"] not in old for w in workers)

            await until(replaced, "successors")
            assert await requests(gateway) == [15 * (number + 1)] * 3


async def test_a_request_that_only_begins_is_noticed_within_seconds(
    home: Path, session: aiohttp.ClientSession
) -> None:
    """On a connection that is kept, so that nothing else tells control to look."""
    replica = Replica("r0", home / "r0.sock", gap_s=0.01)
    file = home / "state" / "demand.json"

    def kept() -> list[int]:
        _, total, _, _ = json.loads(file.read_text())["services"]["llama.test"]
        return list(total[:2])  # begun, ended

    connector = aiohttp.TCPConnector(limit=1)
    async with (
        aiohttp.ClientSession(connector=connector) as one,
        replica,
        Gateway(home, [llama(replica)], workers=1) as gateway,
    ):
        await until(file.exists, "services are kept before they are asked for anything")
        clients = Clients(gateway.url, "llama", one)
        await ask(clients, 1)
        await until(lambda: kept() == [1, 1])
        (stream,) = await begin(clients, 1, tokens=50)
        replica.gate.clear()
        await until(lambda: kept() == [2, 1], within_s=20)
        replica.gate.set()
        assert await stream.over() == "whole"


async def test_a_restart_of_the_whole_keeps_them(
    home: Path, session: aiohttp.ClientSession
) -> None:
    replica = Replica("r0", home / "r0.sock")
    async with replica, Gateway(home, [llama(replica)]) as gateway:
        await ask(Clients(gateway.url, "llama", session), 7)
        await gateway.stop()
        await gateway.spawn()
        await gateway.until_ready()
        assert await requests(gateway) == [7, 7, 7]
        await ask(Clients(gateway.url, "llama", session), 2)
        assert await requests(gateway) == [9, 9, 9]


async def test_a_killed_control_loses_nothing_and_its_streams_stay_load(
    home: Path, session: aiohttp.ClientSession
) -> None:
    replica = Replica("r0", home / "r0.sock", gap_s=0.01)
    async with replica, Gateway(home, [llama(replica)]) as gateway:
        gateway.allow("control is gone", "of an earlier control drains")
        clients = Clients(gateway.url, "llama", session)
        await ask(clients, 5)
        await until((home / "state" / "demand.json").exists, "it was kept once")
        old = set(processes_of(gateway.tmp))
        streams = await begin(clients, 3, tokens=50)
        replica.gate.clear()
        gateway.signal(signal.SIGKILL)
        assert await gateway.exited() == -signal.SIGKILL
        await ask(clients, 2)
        gateway.config["listen"]["http"] = f"127.0.0.1:{gateway.port}"
        gateway.write_file()
        await gateway.close_admin()
        await gateway.spawn()
        await gateway.until_ready()
        assert await requests(gateway) == [10, 10, 10]
        replica.gate.set()
        await asyncio.gather(*(one.over() for one in streams))
        await until(lambda: not any(map(alive, old)), "the survivors have left")
        assert await requests(gateway) == [10, 10, 10]
        await ask(clients, 1)
        assert await requests(gateway) == [11, 11, 11]
