"""A service's router as the control plane sees it: a scripted one for the order of things, the
real one for what is promised when it is killed, hangs or does not start."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from fake_engine import FakeEngine
from scripted_router import STATIC, A, B, ScriptedRouter, hosting
from waiting import until

from gatewayd.control import router_host
from gatewayd.control.router_host import PROBES_MISSED, Pace, RouterHost
from gatewayd.core.model import RouterSpec, TcpAddress
from gatewayd.routers.base import Plugin, Target


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> ScriptedRouter:
    router = ScriptedRouter()
    plugin = Plugin(
        check=lambda spec: [], traits=lambda spec: STATIC, create=lambda *_, **__: router
    )
    monkeypatch.setattr(router_host, "load", lambda name: plugin)
    return router


async def test_it_is_used_when_it_has_a_target_and_not_while_it_is_down(
    scripted: ScriptedRouter,
) -> None:
    async with hosting() as (host, changes):
        host.set_targets([A, B])
        assert host.endpoint is None
        assert host.traits == STATIC
        scripted.held = {A.url, B.url}
        scripted.come()
        await until(lambda: scripted.passes > 2)
        assert changes == []  # up, but it would refuse every request
        assert host.status()["state"] == "starting"
        scripted.held = {B.url}
        await until(lambda: host.endpoint is not None)
        assert changes == [TcpAddress("127.0.0.1", 20001)]
        assert host.traits.request_headers == ((b"key", b"1"),)
        assert not await host.synced(0.02)
        scripted.held = set()
        assert await host.synced(5)
        scripted.go()
        assert changes[1:] == [None]
        assert host.endpoint is None
        assert host.traits == STATIC
        assert host.status()["targets"] == {"desired": ["a", "b"], "serving": []}
        scripted.come()
        assert await host.synced(5)
        assert changes[2:] == [TcpAddress("127.0.0.1", 20002)]
        assert host.traits.request_headers == ((b"key", b"2"),)
        assert scripted.present == [A, B]
        assert host.restarts == 1
    assert scripted.stopped


async def test_without_targets_it_is_used_at_once_and_with_dead_ones_after_a_while(
    scripted: ScriptedRouter,
) -> None:
    async with hosting() as (host, changes):
        scripted.come()
        assert await host.synced(5)
        scripted.go()
        scripted.held = {A.url}
        host.set_targets([A])
        scripted.come()
        await until(lambda: len(changes) == 3)
        assert host.endpoint is not None
        assert host.status()["targets"] == {"desired": ["a"], "serving": []}


async def test_with_roles_it_serves_with_a_target_of_each(scripted: ScriptedRouter) -> None:
    prefill = Target("p", "http://127.0.0.1:10001", "prefill", 10001)
    decode = Target("d", "http://127.0.0.1:10002", "decode")
    async with hosting(RouterSpec("scripted", pd_disaggregation=True)) as (host, changes):
        assert host.lacks == ("prefill", "decode")
        host.set_targets([prefill, decode])
        assert host.lacks == ()  # nothing is missing but the router
        scripted.held = {decode.url}
        scripted.come()
        await until(lambda: host.endpoint is not None)
        assert (host.lacks, host.serving) == (("decode",), False)
        assert host.status()["lacks"] == ["decode"]
        told = len(changes)
        scripted.held = set()
        await until(lambda: host.serving)
        assert len(changes) == told + 1
        host.set_targets([decode])  # known at once, not with the next pass
        assert (host.lacks, host.serving) == (("prefill",), False)
        assert len(changes) == told + 2
        scripted.go()
        assert host.lacks == ("prefill",)


async def test_every_change_and_every_interval_makes_a_pass(scripted: ScriptedRouter) -> None:
    async with hosting() as (host, _):
        scripted.come()
        assert await host.synced(5)
        for wanted in ([A], [A, B], [B], []):
            host.set_targets(wanted)
            assert await host.synced(5)
            assert scripted.present == wanted
        passes = scripted.passes
        host.set_targets([])
        scripted.present = [A]  # behind our back
        await until(lambda: scripted.present == [])
        assert scripted.passes > passes


async def test_drop_returns_when_it_is_gone_for_certain(scripted: ScriptedRouter) -> None:
    async with hosting() as (host, _):
        scripted.come()
        host.set_targets([A, B])
        assert await host.synced(5)
        scripted.stuck = {A.url}
        assert not await host.drop(["a"], 0.05)
        assert host.status()["targets"]["desired"] == ["b"]
        waiting = asyncio.ensure_future(host.drop(["a"], 5))
        await asyncio.sleep(0.02)
        assert not waiting.done()
        scripted.stuck = set()
        assert await waiting
        assert scripted.present == [B]
        assert await host.drop(["nobody"], 5)


async def test_drop_from_a_router_that_died_is_done(scripted: ScriptedRouter) -> None:
    async with hosting() as (host, _):
        scripted.come()
        host.set_targets([A, B])
        assert await host.synced(5)
        scripted.stuck = {A.url}
        waiting = asyncio.ensure_future(host.drop(["a"], 5))
        await asyncio.sleep(0.02)
        scripted.go()
        assert await waiting
        scripted.come()
        assert await host.synced(5)
        assert scripted.present == [B]


async def test_a_refusing_target_leaves_until_it_is_named_again(scripted: ScriptedRouter) -> None:
    async with hosting() as (host, _):
        scripted.come()
        host.set_targets([A, B])
        assert await host.synced(5)
        host.remove_now("a")
        await until(lambda: scripted.present == [B])
        host.set_targets([A, B])
        assert await host.synced(5)
        assert set(scripted.present) == {A, B}


async def test_a_pass_that_fails_is_told_and_repeated(scripted: ScriptedRouter) -> None:
    async with hosting() as (host, _):
        scripted.come()
        host.set_targets([A])
        assert await host.synced(5)
        scripted.broken = "POST: 500"
        host.set_targets([A, B])
        await until(lambda: host.status()["fault"] == "POST: 500")
        assert not await host.synced(0.05)
        assert host.endpoint is not None  # what it has, it serves
        scripted.broken = None
        assert await host.synced(5)
        assert host.status()["fault"] is None


async def test_one_that_hangs_is_replaced_after_three_probes(scripted: ScriptedRouter) -> None:
    async with hosting() as (host, changes):
        scripted.come()
        host.set_targets([A])
        assert await host.synced(5)
        await asyncio.sleep(0.1)  # many good probes
        assert scripted.replaced == []
        scripted.answers_probes = False
        await until(lambda: bool(scripted.replaced))
        assert scripted.replaced == ["no answer to 3 probes"]
        assert changes[-1] is None
        scripted.come()
        assert await host.synced(5)
        await asyncio.sleep(0.1)
        assert len(scripted.replaced) == 1
        assert scripted.tidied > 0


async def test_closing_ends_every_wait(scripted: ScriptedRouter) -> None:
    async with hosting() as (host, _):
        scripted.come()
        scripted.stuck = {A.url}
        host.set_targets([A])
        assert await host.synced(5)
        waiting = asyncio.ensure_future(host.drop(["a"], 30))
        await asyncio.sleep(0.02)
        await host.aclose()
        assert await waiting
        assert not await host.synced(0.01)


def test_the_pace_finds_a_hung_router_within_ten_seconds() -> None:
    pace = Pace()
    slowest = pace.probe_every + PROBES_MISSED * max(pace.probe_every, pace.probe_timeout)
    assert slowest < 10


# --- the real one --------------------------------------------------------------------------------

REAL = RouterSpec("sglang")


async def ask(host: RouterHost) -> int:
    assert host.endpoint is not None
    headers = {name.decode(): value.decode() for name, value in host.traits.request_headers}
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(f"http://{host.endpoint}/v1/chat/completions", json=body) as response,
    ):
        return response.status


async def test_killed_it_is_back_with_its_targets(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    async with (
        FakeEngine("a") as one,
        FakeEngine("b") as two,
        hosting(REAL, tmp_path, Pace()) as (host, changes),
    ):
        began = loop.time()
        host.set_targets([Target("a", one.url), Target("b", two.url)])
        assert await host.synced(20)
        # A busy machine is slower at everything: a restart is held against the start.
        patience = max(2.0, 2 * (loop.time() - began))
        first = host.status()
        os.kill(first["pid"], signal.SIGKILL)
        began = loop.time()
        await until(lambda: host.endpoint is None)
        assert loop.time() - began < 0.5
        await until(lambda: host.endpoint is not None)
        assert loop.time() - began < patience
        assert await host.synced(5)
        assert await ask(host) == 200
        status = host.status()
        assert status["state"] == "ready"
        assert status["pid"] != first["pid"]
        assert status["endpoint"] != first["endpoint"]  # another port, another key
        assert status["restarts"] == 1
        assert status["last_exit"] == "was ended by SIGKILL"
        assert status["targets"] == {"desired": ["a", "b"], "serving": ["a", "b"]}
        assert [change is not None for change in changes] == [True, False, True]


async def test_hung_it_is_found_killed_and_replaced(tmp_path: Path) -> None:
    quick = Pace(probe_every=0.2, probe_timeout=0.5)
    async with FakeEngine("a") as engine, hosting(REAL, tmp_path, quick) as (host, _):
        host.set_targets([Target("a", engine.url)])
        assert await host.synced(20)
        pid = host.status()["pid"]
        os.kill(pid, signal.SIGSTOP)
        await until(lambda: host.endpoint is None)
        assert await host.synced(20)
        assert await ask(host) == 200
        assert host.status()["last_exit"] == "was ended by SIGKILL (no answer to 3 probes)"
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_one_that_exits_at_once_is_not_started_in_a_storm(tmp_path: Path) -> None:
    """Its service says why; the rest of the gateway does not feel it."""
    wrong = RouterSpec("sglang", args=(("cache-threshold", "7"),))
    statuses: list[dict[str, Any]] = []
    async with hosting(wrong, tmp_path, Pace()) as (host, changes):
        host.set_targets([A])
        began = asyncio.get_running_loop().time()
        await until(lambda: host.restarts >= 2)
        # At 0 s, 1 s and 3 s.
        assert asyncio.get_running_loop().time() - began >= 2.9
        assert not await host.synced(0.01)
        assert await host.drop(["a"], 1)
        statuses.append(host.status())
    assert changes == []
    (status,) = statuses
    assert status["state"] == "restarting"
    assert status["endpoint"] is None
    assert status["last_exit"] == "exited with 1"
    assert "cache_threshold" in status["last_words"][-1]


async def test_two_routers_at_once_keep_apart(tmp_path: Path) -> None:
    async with (
        FakeEngine("a") as one,
        FakeEngine("b") as two,
        hosting(REAL, tmp_path / "one", Pace()) as (first, _),
        hosting(REAL, tmp_path / "two", Pace()) as (second, _),
    ):
        first.set_targets([Target("a", one.url)])
        second.set_targets([Target("b", two.url)])
        assert all(await asyncio.gather(first.synced(20), second.synced(20)))
        assert first.endpoint != second.endpoint
        assert [await ask(first) for _ in range(3)] == [200] * 3
        assert (len(one.inferences), len(two.inferences)) == (3, 0)
        assert await ask(second) == 200
        assert len(two.inferences) == 1
        assert first.traits.request_headers != second.traits.request_headers
