"""Prompts and answers made by different replicas, with the real router between them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from processes import gone
from waiting import until
from whole_gateway import Gateway, gatewayd
from whole_pd import CUT, Chat, Engine, Engines, chatting, chosen


@pytest.mark.parametrize("router_type", ["sglang", "smg"])
async def test_both_get_the_same_and_are_told_where_to_meet(home: Path, router_type: str) -> None:
    engines = Engines()
    p0, p1, d0 = (engines.add(name) for name in ("p0", "p1", "d0"))
    router = {"type": router_type, "policy": "round_robin"}
    async with chatting(home, p0, p1, d0, **router) as chat:
        await chat.until_works()
        for content in ['say "bootstrap_host":"127.0.0.1"', "ä" * 10_000] * 2:
            status, answer = await chat.post(messages=[{"role": "user", "content": content}])
            assert (status, answer["id"]) == (200, "d0")
            assert d0.of("/v1/chat/completions")[-1].json["messages"][0]["content"] == content
        assert p0.rooms
        assert p1.rooms
        status, answer = await chat.post("/v1/completions", prompt=["a", "b", "c"])
        assert (status, answer["id"]) == (200, "d0")
        assert len(d0.of("/v1/completions")[-1].json["bootstrap_room"]) == 3
        assert (await chat.post("/generate", text="a"))[0] == 200
        async with chat.ask(stream=True, max_tokens=3) as response:
            lines = [line async for line in response.content if line.startswith(b"data: ")]
        assert len(lines) == 4
        # More than is read at a time: passed on as it comes, with the fields at its end.
        content = 'ä\\"' * 700_000
        status, _ = await chat.post(messages=[{"role": "user", "content": content}])
        assert status == 200
        assert d0.of("/v1/chat/completions")[-1].json["messages"][0]["content"] == content
        own = ("/v1/responses",) if router_type == "sglang" else ()
        for path in ("/v1/embeddings", "/v1/classify", *own):
            status, text = await chat.post(path, input="a")
            assert status == 501
            assert "not implemented" in text
        service = await chat.gateway.service("chat")
        assert service["router"]["mode"] == "through"
        assert await chat.roles() == {"p0": "prefill", "p1": "prefill", "d0": "decode"}
        ways = service["requests"]
        assert ways["direct"] == ways["fallback"] == ways["steered"] == 0


async def test_each_role_comes_and_goes_without_the_router(home: Path) -> None:
    engines = Engines()
    p0, d0 = engines.add("p0"), engines.add("d0")
    async with chatting(home, p0, d0) as chat, engines.add("d1") as d1, engines.add("p1") as p1:
        gateway = chat.gateway
        await chat.until_works()
        pid = (await gateway.service("chat"))["router"]["pid"]
        await gateway.remove("chat", "d0")
        await chat.until_lacks("decode")
        async with chat.ask() as response:
            assert response.status == 503
            assert response.headers["Retry-After"] == "5"
            error = (await response.json())["error"]
        assert error["code"] == "no_ready_replica"
        assert error["message"].startswith("No decode replica of this service is ready")
        status, ready = await gateway.call("GET", "/readyz?verbose")
        assert status == 200
        assert "service chat" in str(ready)
        assert "no decode" in str(ready)
        _, table, _ = await gatewayd("status", "--admin", f"unix:{gateway.admin_path}")
        assert "ready, no decode" in table
        await gateway.change("chat/replicas/register", {"id": "d1", "url": d1.url})
        await chat.until_works()
        await gateway.remove("chat", "p0")
        await chat.until_lacks("prefill")
        await gateway.remove("chat", "d1")
        await chat.until_lacks("prefill", "decode")
        await gateway.change(
            "chat/replicas/register",
            {
                "job_id": "p1",
                "ssh_host": "nobody@nowhere",
                "ssh_port": 22,
                "internal_ip": p1.host,
                "app_port": p1.port,
            },
        )
        await gateway.change("chat/replicas/register", {"id": "d1", "url": d1.url})
        await chat.until_works()
        assert p1.rooms
        assert (await gateway.service("chat"))["router"]["pid"] == pid
        assert (await gateway.service("chat"))["router"]["restarts"] == 0
        # Nobody was asked without a prefill beside it.
        assert not d0.inferences or all(r.json.get("bootstrap_room") for r in d0.inferences)


async def test_a_prefill_that_is_ready_late_is_asked_until_it_tells(home: Path) -> None:
    engines = Engines()
    d0 = engines.add("d0", info_path="/get_server_info")
    p0 = engines.add("p0", ready=False)
    with socket.create_server((p0.host, 0)) as taken:
        p0.port = taken.getsockname()[1]
    async with chatting(home, d0, late=(p0,)) as chat:
        chat.gateway.allow("replica p0 of main/chat")
        await chat.until_lacks("prefill")
        async with p0:

            async def asked() -> bool:
                (shown,) = [
                    replica
                    for replica in (await chat.gateway.service("chat"))["replicas"]
                    if replica["id"] == "p0"
                ]
                return "not ready" in (shown["role_fault"] or "")

            await until(asked)
            assert await chat.roles() == {"d0": "decode", "p0": "unknown"}
            assert not await chat.works()
            p0.ready = True
            await chat.until_works()


async def test_a_role_that_changes_with_a_restart_is_seen(home: Path) -> None:
    engines = Engines()
    p0, d0, d1 = (engines.add(name) for name in ("p0", "d0", "d1"))
    async with chatting(home, p0, d0, d1) as chat:
        chat.gateway.allow("replica d1 of main/chat", "neither prefill nor decode")
        await chat.until_works()
        pid = (await chat.gateway.service("chat"))["router"]["pid"]
        await d1.stop()
        d1.role = "prefill"

        async def missed() -> bool:
            await chat.post()
            return (await chat.gateway.replica_states("chat"))["d1"] == "unreachable"

        await until(missed)
        assert (await chat.roles())["d1"] == "unknown"
        await d1.start()
        await chat.until_roles(p0="prefill", d0="decode", d1="prefill")

        async def both() -> bool:
            await asyncio.gather(*(chat.post() for _ in range(4)))
            return bool(d1.rooms)

        await until(both)
        d1.role = "regular"  # started anew between two requests
        await chat.until_roles(p0="prefill", d0="decode", d1="regular")

        async def left() -> bool:
            router = (await chat.gateway.service("chat"))["router"]
            return "d1" not in router["targets"]["serving"]

        await until(left, "the router knows it no more")
        seen = len(d1.of("/v1/chat/completions"))
        for _ in range(6):
            assert await chat.works()
        assert len(d1.of("/v1/chat/completions")) == seen
        assert (await chat.gateway.service("chat"))["router"]["pid"] == pid


async def test_a_decode_that_dies_cuts_its_stream_and_is_replaced(home: Path) -> None:
    engines = Engines()
    p0, d0, d1 = (engines.add(name) for name in ("p0", "d0", "d1"))
    async with chatting(home, p0, d0, d1, policy="round_robin") as chat:
        chat.gateway.allow("replica d. of main/chat", "502 POST")
        await chat.until_works()
        d0.stepped = d1.stepped = True
        async with chat.ask(stream=True, max_tokens=9) as response:
            dying, other = await chosen(d0, d1)
            dying.step(2)
            assert b"token 0" in await response.content.readline()
            await dying.stop()
            with pytest.raises(CUT):
                await response.content.read()
        other.stepped = False
        other.step(1000)
        await chat.until_works()
        async with asyncio.timeout(30):
            while set((await chat.gateway.replica_states("chat")).values()) == {"up"}:
                await chat.post()
        for _ in range(4):
            status, answer = await chat.post()
            assert (status, answer["id"]) == (200, other.name)


async def test_a_replicas_refusal_reaches_its_client(home: Path) -> None:
    engines = Engines()
    p0, d0 = engines.add("p0"), engines.add("d0")
    async with chatting(home, p0, d0) as chat:
        await chat.until_works()
        why = "the context is too long, by " + "9" * 100
        for engine in (p0, d0):
            refusal = web.json_response({"error": {"message": why}}, status=400)
            engine.answers = {"/v1/chat/completions": refusal}
            for stream in (False, True):
                status, answer = await chat.post(stream=stream)
                assert status == 400
                assert why in str(answer)
            engine.answers = {}
        assert await chat.works()


@pytest.mark.parametrize(("fails", "waits"), [("p0", "d0"), ("d0", "p0")])
async def test_half_a_request_is_not_left_waiting(home: Path, fails: str, waits: str) -> None:
    engines = Engines()
    p0, d0 = engines.add("p0"), engines.add("d0")
    async with chatting(home, p0, d0) as chat:
        chat.gateway.allow("502 POST")
        await chat.until_works()
        engines.all[fails].manner = "breaks"
        engines.all[waits].manner = "mute"
        for stream in (False, True):
            async with asyncio.timeout(30):
                status, answer = await chat.post(stream=stream)
            assert (status, answer["error"]["code"]) == (502, "upstream_error")
        waiting = engines.all[waits]  # which is asked for its role all the while
        await until(lambda: waiting.inferences[-1].outcome != "running")
        assert waiting.inferences[-1].outcome == "client gone"

        async def idle() -> bool:
            return set((await chat.gateway.in_flight("chat")).values()) == {0}

        await until(idle)


async def test_nobody_notices_replicas_that_come_and_go(home: Path) -> None:
    engines = Engines()
    p0, p1, d0, d1 = (engines.add(name, gap_s=0.01) for name in ("p0", "p1", "d0", "d1"))
    async with chatting(home, p0, p1, d0, d1, policy="round_robin") as chat:
        await chat.until_works()
        over = asyncio.Event()

        async def client(number: int) -> int:
            count = 0
            while not over.is_set():
                async with chat.ask(stream=bool(number % 2)) as response:
                    text = await response.text()
                    assert response.status == 200, text
                    assert "token 3" in text
                count += 1
            return count

        clients = [asyncio.create_task(client(number)) for number in range(16)]
        for _ in range(2):
            for engine in (p0, d0):
                drained = await chat.gateway.drain("chat", engine.name, 10)
                assert drained["drained"]
                await chat.gateway.change("chat/replicas/register", engine.entry)
                await chat.until_roles(p0="prefill", p1="prefill", d0="decode", d1="decode")
                await chat.gateway.router_pid("chat")
        over.set()
        assert min(await asyncio.gather(*clients)) > 4
        assert p0.rooms
        assert set((await chat.gateway.in_flight("chat")).values()) == {0}


async def test_drain_waits_for_both_halves(home: Path) -> None:
    engines = Engines()
    p0, d0, d1 = (engines.add(name) for name in ("p0", "d0", "d1"))
    async with chatting(home, p0, d0, d1, policy="round_robin") as chat:
        await chat.until_works()
        d0.stepped = d1.stepped = True
        async with chat.ask(stream=True, max_tokens=3) as response:
            busy, other = await chosen(d0, d1)
            other.step(1000)

            async def counted() -> bool:
                return (await chat.gateway.in_flight("chat"))[busy.name] == 1

            await until(counted)
            drain = asyncio.create_task(chat.gateway.drain("chat", busy.name, 10))

            async def draining() -> bool:
                return (await chat.gateway.replica_states("chat"))[busy.name] == "draining"

            await until(draining)
            for _ in range(3):
                assert (await chat.post())[1]["id"] == other.name
            assert not drain.done()
            busy.step(1000)
            text = await response.text()
            assert "token 2" in text
            assert "[DONE]" in text
        assert await drain == {"status": "ok", "drained": True, "running": 0}
        assert await chat.works()


async def test_nothing_goes_past_a_router_that_is_down(home: Path) -> None:
    engines = Engines()
    p0, d0 = engines.add("p0"), engines.add("d0")
    async with chatting(home, p0, d0) as chat:
        chat.gateway.allow("router of main/chat", "502 POST")
        await chat.until_works()
        await chat.kill_router()
        seen = 0
        async with asyncio.timeout(30):
            while True:
                async with chat.ask() as response:
                    if response.status == 200 and seen:
                        break
                    if response.status == 503:
                        seen += 1
                        assert response.headers["Retry-After"] == "5"
                        assert "router" in await response.text()
                    else:
                        assert response.status in (200, 502)
        ways = (await chat.gateway.service("chat"))["requests"]
        assert ways["fallback"] == ways["direct"] == 0


async def test_a_bridge_that_is_replaced_knows_where_they_meet(home: Path) -> None:
    engines = Engines()
    p0, d0 = engines.add("p0"), engines.add("d0")
    async with chatting(home, p0, d0) as chat:
        chat.gateway.allow("bridge .* was killed")
        await chat.until_works()
        pid = (await chat.gateway.status())["bridge"]["pid"]
        os.kill(pid, signal.SIGKILL)
        await until(lambda: gone(pid))
        async with asyncio.timeout(30):
            assert await chat.works()


async def test_a_reload_turns_it_on_and_off_for_one_service(home: Path) -> None:
    engines = Engines()
    p0, d0 = engines.add("p0"), engines.add("d0")
    plain = Engine("r0", host="127.0.0.9", role="regular", engines=Engines())
    async with chatting(home, p0, d0) as chat, plain:
        gateway = chat.gateway
        await chat.until_works()
        other = {"name": "other", "router": "sglang", "replicas": [plain.entry]}
        gateway.config["services"].append(other)
        gateway.write_file()
        assert (await gatewayd("reload", "--admin", f"unix:{gateway.admin_path}"))[0] == 0
        pid = await gateway.router_pid("other")
        before = (await gateway.service("chat"))["router"]["pid"]
        gateway.config["services"][0]["router"]["pd_disaggregation"] = False
        gateway.write_file()
        code, out, _ = await gatewayd("reload", "--admin", f"unix:{gateway.admin_path}")
        assert code == 0
        assert "pd_disaggregation" in out
        assert await gateway.router_pid("chat") != before
        assert await chat.roles() == {"p0": None, "d0": None}
        gateway.config["services"][0]["router"]["pd_disaggregation"] = True
        gateway.write_file()
        assert (await gatewayd("reload", "--admin", f"unix:{gateway.admin_path}"))[0] == 0
        await chat.until_works()
        assert await gateway.router_pid("other") == pid


async def test_a_replica_that_others_cannot_reach_is_refused(home: Path) -> None:
    engines = Engines()
    p0 = engines.add("p0")
    async with chatting(home, p0) as chat:
        for body in (
            {"job_id": "x", "ssh_host": "u@h", "ssh_port": 22, "app_port": 8000},
            {"id": "x", "socket": "/run/x.sock"},
        ):
            status, answer = await chat.gateway.call(
                "POST", "/api/registry/main/services/chat/replicas/register", body
            )
            assert status == 400
            assert "PD disaggregation requires internal IP for all replicas." in str(answer)
        chat.gateway.config["services"][0]["replicas"].append("unix:/run/x.sock")
        chat.gateway.write_file()
        code, _, errors = await gatewayd("check", "-c", str(chat.gateway.file))
        assert code == 2
        assert "services[0].replicas[1]: with `pd_disaggregation`" in errors


async def test_a_service_that_a_control_plane_registers(home: Path) -> None:
    engines = Engines()
    async with AsyncExitStack() as stack:
        p0, d0 = [await stack.enter_async_context(engines.add(name)) for name in ("p0", "d0")]
        gateway = await stack.enter_async_context(Gateway(home))
        chat = Chat(gateway, await stack.enter_async_context(aiohttp.ClientSession()))
        router = {"type": "sglang", "policy": "power_of_two", "pd_disaggregation": True}
        body = {"run_name": "chat", "domain": "chat.test", "https": False, "auth": False}
        await gateway.change("register", {**body, "router": router})
        for engine in (p0, d0):
            replica = {"job_id": f"job-{engine.name}", "ssh_host": "u@nowhere", "ssh_port": 10022}
            where = {"internal_ip": engine.host, "app_port": engine.port, "ssh_proxy": None}
            await gateway.change("chat/replicas/register", replica | where)
        await chat.until_works()
        assert await chat.roles() == {"job-p0": "prefill", "job-d0": "decode"}
        assert not engines.faults
