"""What was registered is there again, however the gateway ended."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from waiting import until
from whole_gateway import Gateway
from whole_replicas import Replica
from whole_streams import Clients, begin


@pytest.fixture
async def replica(home: Path) -> AsyncIterator[Replica]:
    async with Replica("r0", home / "r0.sock", gap_s=0.03) as replica:
        yield replica


async def again(gateway: Gateway) -> None:
    await gateway.close_admin()
    await gateway.spawn()
    await gateway.until_ready()


async def test_services_survive_a_kill_and_a_restart(
    home: Path, replica: Replica, session: aiohttp.ClientSession
) -> None:
    async with Gateway(home, workers=1) as gateway:
        gateway.allow("control is gone", "of an earlier control drains")
        body = {"run_name": "late", "domain": "late.test", "https": False, "auth": False}
        await gateway.change("register", body | {"model": "m", "id": "ab" * 16})
        await gateway.add("late", "r0", replica.path)
        assert (await Clients(gateway.url, "late", session).post(max_tokens=1))[0] == 200

        # Killed while a stream runs: the stream's worker serves on, and drains for its successor.
        (stream,) = await begin(Clients(gateway.url, "late", session), 1, tokens=60)
        gateway.signal(signal.SIGKILL)
        await gateway.exited()
        await again(gateway)
        assert (await Clients(gateway.url, "late", session).post(max_tokens=1))[0] == 200
        assert await stream.over() == "whole"
        listed = await gateway.call("GET", "/api/services/list")
        assert listed[1]["services"] == [
            {
                "id": "ab" * 16,
                "project_name": "main",
                "run_name": "late",
                "replicas": [{"id": "r0"}],
            }
        ]

        # Stopped, and the newest state lost half of itself meanwhile: the copy before it counts.
        gateway.allow("ERROR .*registry.json: not JSON.*the copy before it is used")
        await gateway.change("late/replicas/r0/unregister")
        await gateway.change("late/unregister")
        gateway.signal(signal.SIGTERM)
        assert await gateway.exited() == 0
        newest = home / "state" / "registry.json"
        newest.write_bytes(newest.read_bytes()[:-30])
        await again(gateway)
        _, listed = await gateway.call("GET", "/api/services/list")
        assert [entry["run_name"] for entry in listed["services"]] == ["late"]
        await gateway.add("late", "r0", replica.path)

        async def serves() -> bool:
            return (await Clients(gateway.url, "late", session).post(max_tokens=1))[0] == 200

        await until(serves, "the service is back")
