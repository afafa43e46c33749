"""What every router with an HTTP management API must keep under its plug-in, as tests.

A module of tests derives from `Promises`; its fixtures `router` and `client` are real.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from pathlib import Path
from typing import ClassVar

import aiohttp
import pytest
from aiohttp import web
from fake_engine import FakeEngine
from live_router import PORTS, Client, api_of, engines, key_of, running, settle, targets
from waiting import until

from gatewayd.core.model import RouterSpec
from gatewayd.routers import http_logs
from gatewayd.routers.base import RouterError, load
from gatewayd.routers.http_flags import Flags
from gatewayd.routers.http_router import HttpRouter

# Policies that give every target its share, whatever the prompts.
SPREADING = ("random", "round_robin", "power_of_two", "least_load", "manual", "bucket")


class Promises:
    """`introspection` are the paths of a target that it may ask for by itself; `nobody` is what
    it says to a request when there is no target."""

    flags: ClassVar[Flags]
    introspection: ClassVar[frozenset[str]]
    nobody: ClassVar[int]

    async def test_it_starts_without_targets_and_says_that_nothing_was_sent(
        self, router: HttpRouter, client: Client
    ) -> None:
        assert await router.health()
        assert router.metrics_address is not None
        assert router.endpoint is not None
        assert router.metrics_address.port == router.endpoint.port + 10000
        status, code, _ = await client.chat()
        assert status == self.nobody
        assert code is not None
        assert code.encode() in router.traits.unsent_errors

    async def test_only_who_has_the_key_gets_in(self, router: HttpRouter) -> None:
        base = f"http://{router.endpoint}"
        async with aiohttp.ClientSession() as session:
            for path in ("/workers", "/v1/chat/completions", "/flush_cache"):
                async with session.post(
                    base + path, json={"url": "http://127.0.0.1:1"}
                ) as response:
                    assert response.status == 401
        assert (await router.sync([])).present == frozenset()

    async def test_a_target_takes_requests_soon_and_is_gone_at_once(
        self, router: HttpRouter, client: Client
    ) -> None:
        loop = asyncio.get_running_loop()
        async with engines(2) as (one, two):
            began = loop.time()
            await settle(router, targets(one, two))
            assert loop.time() - began < 1.0
            assert [(await client.chat())[0] for _ in range(4)] == [200] * 4
            await settle(router, targets(two))
            before = len(one.inferences)
            assert [(await client.chat())[0] for _ in range(6)] == [200] * 6
            assert len(one.inferences) == before
            # It was only asked for what a router needs to know: no key was given to it.
            paths = {r.path for r in one.requests} - {"/v1/chat/completions"}
            assert paths <= self.introspection
            assert all(r.header("authorization") == [] for r in one.requests if r.method == "GET")

    async def test_to_nothing_and_back_without_a_restart(
        self, router: HttpRouter, client: Client
    ) -> None:
        async with engines(2) as pair:
            for _ in range(3):
                await settle(router, targets(*pair))
                assert (await client.chat())[0] == 200
                assert (await settle(router, [])).present == frozenset()
                assert (await client.chat())[0] == self.nobody

    async def test_a_token_reaches_the_target_and_a_clients_headers_do_not(
        self, router: HttpRouter, client: Client
    ) -> None:
        async with engines(1) as (engine,):
            await settle(router, targets(engine))
            token = router.traits.token_header.decode()
            status, _, _ = await client.chat(
                headers={token: "t-1", "X-Request-Id": "r", "Cookie": "c"}
            )
            assert status == 200
            (sent,) = engine.inferences
            assert sent.header(token) == ["t-1"]
            assert sent.header("cookie") == []
            # Ours alone, once; the bridge takes it off.
            assert sent.header("authorization") == [router.traits.request_headers[0][1].decode()]

    async def test_strangers_among_its_targets_are_removed(
        self, router: HttpRouter, client: Client
    ) -> None:
        async with engines(2) as (ours, stranger):
            await settle(router, targets(ours))
            api = await api_of(router)
            await api.add(stranger.url)
            await until(lambda: bool(stranger.of("/server_info")))

            async def both() -> bool:
                return len(await api.targets()) == 2

            await until(both)
            await api.aclose()
            state = await settle(router, targets(ours))
            assert state.present == {ours.url}
            assert [(await client.chat())[0] for _ in range(4)] == [200] * 4
            assert stranger.inferences == []

    async def test_a_registration_that_was_given_up_does_not_come_back_as_a_ghost(
        self,
        router: HttpRouter,
    ) -> None:
        async with engines(1) as (engine,):
            engine.healthy = False
            state = await router.sync(targets(engine))
            assert not state.settled
            assert state.serving == frozenset()
            await until(lambda: bool(engine.of("/health")))
            # No longer wanted, but its registration cannot be cancelled: it counts as present.
            state = await router.sync([])
            assert state.present == {engine.url}
            assert not state.settled
            engine.healthy = True
            assert (await settle(router, [])).present == frozenset()
            await until(
                lambda: bool(engine.of("/server_info"))
            )  # it did come true, and was removed
            assert (await router.sync([])).present == frozenset()

    async def test_a_target_that_was_not_ready_is_added_when_it_is(
        self, router: HttpRouter
    ) -> None:
        async with engines(1) as (engine,):
            engine.healthy = False
            assert (await router.sync(targets(engine))).serving == frozenset()
            engine.healthy = True
            await settle(router, targets(engine))

    async def test_no_retry_no_breaker_no_redirected_blame(
        self, router: HttpRouter, client: Client
    ) -> None:
        async with engines(1) as (engine,):
            await settle(router, targets(engine))
            path = "/v1/chat/completions"
            engine.answers[path] = web.json_response({"error": "too long"}, status=400)
            assert [(await client.chat())[:2] for _ in range(15)] == [(400, None)] * 15
            engine.answers[path] = web.json_response({"error": "broke"}, status=500)
            assert (await client.chat())[:2] == (500, None)
            assert len(engine.inferences) == 16  # each was sent once
            engine.answers.clear()
            assert (await client.chat())[0] == 200

    async def test_a_dead_target_is_no_unsent_error(
        self, router: HttpRouter, client: Client
    ) -> None:
        async with engines(1) as (engine,):
            await settle(router, targets(engine))
            await engine.stop()
            status, code, _ = await client.chat()
            assert status == 500
            assert code is not None
            assert code.encode() not in router.traits.unsent_errors

    async def test_what_it_learned_of_a_target_survives_the_coming_and_going_of_others(
        self, router: HttpRouter, client: Client
    ) -> None:
        prompts = [f"{letter} " * 400 for letter in "ab"]

        async def chosen(prompt: str, *among: FakeEngine) -> str:
            counts = [len(engine.inferences) for engine in among]
            assert (await client.chat(prompt))[0] == 200
            (name,) = [
                engine.name
                for engine, count in zip(among, counts, strict=True)
                if len(engine.inferences) > count
            ]
            return name

        async with engines(4) as (one, two, three, four):
            await settle(router, targets(one, two))
            for engine in (one, two):
                engine.gate.clear()
            # The second while the first is still running: then the less loaded one is the other.
            first = []
            for count, prompt in enumerate(prompts, 1):
                first.append(asyncio.ensure_future(client.chat(prompt)))
                await until(lambda: one.running + two.running == count)  # noqa: B023
            assert one.running == two.running == 1
            for engine in (one, two):
                engine.gate.set()
            await asyncio.gather(*first)
            homes = {prompt: await chosen(prompt, one, two) for prompt in prompts}
            assert set(homes.values()) == {"e0", "e1"}
            for now in ([one, two, three], [one, two, four], [one, two]):
                await settle(router, targets(*now))
                for prompt in prompts * 2:
                    assert await chosen(prompt, *now) == homes[prompt]

    async def test_a_dozen_targets_come_at_most_four_at_once(self, router: HttpRouter) -> None:
        async with engines(12) as dozen:
            for engine in dozen:
                engine.healthy = False
            await router.sync(targets(*dozen))
            await until(lambda: sum(bool(e.of("/health")) for e in dozen) == 4)
            assert (await router.sync(targets(*dozen))).serving == frozenset()
            assert sum(bool(engine.of("/health")) for engine in dozen) == 4
            for engine in dozen:
                engine.healthy = True
            await settle(router, targets(*dozen))

    async def test_running_requests_of_a_removed_target_end_whole(
        self, router: HttpRouter, client: Client
    ) -> None:
        async with engines(1) as (engine,):
            await settle(router, targets(engine))
            engine.gate.clear()
            running_request = asyncio.ensure_future(client.chat())
            await until(lambda: engine.running == 1)
            await settle(router, [])
            engine.gate.set()
            status, _, answer = await running_request
            assert status == 200
            assert answer["choices"][0]["message"]["content"].count("token") == 4

    async def test_the_key_is_on_no_command_line(self, router: HttpRouter) -> None:
        key = key_of(router)
        assert len(key) > 30
        command_line = command_line_of(router.pid)
        assert b"--port" in command_line
        assert key.encode() not in command_line

    async def test_who_answers_without_our_key_is_not_ours(
        self, router_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Somebody else has taken the port between our look and the router's start."""
        app = web.Application()

        async def yes(request: web.Request) -> web.Response:
            return web.json_response({"workers": []})

        app.router.add_route("*", "/{tail:.*}", yes)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        take = PORTS.take
        answers = itertools.chain([port], iter(take, None))
        monkeypatch.setattr(PORTS, "take", lambda: next(answers))
        try:
            async with running(router_type, tmp_path) as router:
                assert router.endpoint is not None
                assert router.endpoint.port != port
                assert router.restarts == 1
                assert router.last_exit is not None
                assert "not the router that was started" in router.last_exit
        finally:
            await runner.cleanup()

    async def test_stopped_it_leaves_nothing_behind(self, router_type: str, tmp_path: Path) -> None:
        async with running(router_type, tmp_path) as router:
            pid, endpoint = router.pid, router.endpoint
            assert pid is not None
            assert endpoint is not None
        assert router.endpoint is None
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(endpoint.host, endpoint.port)
        with pytest.raises(RouterError):
            await router.sync([])

    async def test_every_policy_starts_with_nothing_whatever_the_environment(
        self, router_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """All at once, which also shows that routers do not hinder each other."""
        policies = self.flags.policies()
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv("POSTGRES_POOL_MAX", "many")

        async def one(policy: str) -> list[int]:
            # aiohttp ignores the proxy as long as it is not told to trust the environment.
            async with (
                running(router_type, tmp_path / policy, policy) as router,
                engines(2) as (a, b),
                aiohttp.ClientSession() as session,
            ):
                client = Client(router, session)
                statuses = [(await client.chat())[0]]
                for wanted in ([a], [a, b], [b], [], [b, a]):
                    state = await settle(router, targets(*wanted))
                    assert state.present == {engine.url for engine in wanted}
                    statuses.append((await client.chat())[0])
                if policy in SPREADING:
                    await asyncio.gather(*(client.chat(f"{n} " * 50) for n in range(30)))
                    assert a.inferences
                    assert b.inferences
                assert router.restarts == 0
                return statuses

        found = await asyncio.gather(*(one(policy) for policy in policies))
        assert found == [[self.nobody, 200, 200, 200, self.nobody, 200]] * len(policies)

    async def test_its_log_file_can_be_emptied_while_it_writes(
        self, router_type: str, tmp_path: Path
    ) -> None:
        directory = tmp_path / "router_logs" / "llama"

        def written() -> bytes:
            return b"".join(path.read_bytes() for path in directory.glob("smg.*"))

        async with running(router_type, directory) as router:
            assert directory.stat().st_mode & 0o777 == 0o700
            assert router.endpoint is not None
            async with aiohttp.ClientSession() as session:

                async def complain() -> None:
                    """A call without the key, which it logs."""
                    async with session.get(f"http://{router.endpoint}/workers") as response:
                        assert response.status == 401

                await complain()
                await until(lambda: b"request failed" in written())
                http_logs.tidy(directory, size=0)
                (old,) = directory.glob("*.old")
                old.unlink()
                await complain()
                await until(lambda: b"request failed" in written())
        assert b"\0" not in written()  # it went on at the end of the file, not where it had been

    async def test_a_router_that_refuses_its_flags_leaves_its_last_words(
        self, router_type: str, tmp_path: Path
    ) -> None:
        args = (("max-payload-size", "0"), ("cache-threshold", "7"))
        spec = RouterSpec(router_type, args=args)
        router = load(router_type).create("router of test", spec, ports=PORTS, log_dir=tmp_path)
        router.start(lambda: None, lambda: None)
        try:
            await until(lambda: router.last_exit is not None)
            assert router.last_exit == "exited with 1"
            assert router.last_words[-1].startswith("ValueError: Configuration")
            assert not await router.ready(0.01)
        finally:
            await router.stop()


def command_line_of(pid: int | None) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()
