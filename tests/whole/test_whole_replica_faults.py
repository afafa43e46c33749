"""Replicas that die, vanish, hang or are no sockets, and clients that leave: straight, through the
router, and steered by it. One gateway for all; each test leaves its service as it found it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import secrets
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import httpx2
import openai
import pytest
import pytest_asyncio
from waiting import until
from whole_gateway import INTERNAL, Gateway
from whole_replicas import Replica, replica_process
from whole_streams import Clients, begin

pytestmark = pytest.mark.asyncio(loop_scope="module")

WAYS = ("direct", "through", "steered")
EVERY_WAY = pytest.mark.parametrize("service", WAYS)
ROUTER = {
    "direct": None,
    "through": {"type": "sglang", "mode": "through"},
    "steered": {"type": "sglang", "mode": "steer"},
}


@dataclass
class Whole:
    gateway: Gateway
    replicas: dict[str, list[Replica]]
    session: aiohttp.ClientSession
    home: Path

    def clients(self, service: str) -> Clients:
        return Clients(self.gateway.url, service, self.session)

    async def settled(self, service: str) -> None:
        """Its replicas are up, and its router has them all."""
        await until(lambda: self._all_up(service), "all replicas are up")
        if ROUTER.get(service):
            await self.gateway.router_pid(service)

    async def _all_up(self, service: str) -> bool:
        states = await self.gateway.replica_states(service)
        return set(states.values()) == {"up"} and len(states) == len(self.replicas[service])

    @contextlib.asynccontextmanager
    async def only(self, service: str, other: Replica) -> AsyncIterator[None]:
        """Another replica in place of the service's own."""
        assert other.path is not None
        await self.gateway.add(service, other.name, other.path)
        for replica in self.replicas[service]:
            await self.gateway.remove(service, replica.name)
        if ROUTER[service]:
            await self.gateway.router_pid(service)
        try:
            yield
        finally:
            for replica in self.replicas[service]:
                assert replica.path is not None
                await self.gateway.add(service, replica.name, replica.path)
            await self.gateway.remove(service, other.name)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def whole(shared_home: Path) -> AsyncIterator[Whole]:
    home = shared_home
    replicas = {
        way: [Replica(f"{way}{i}", home / f"{way}{i}.sock") for i in range(2)] for way in WAYS
    }
    replicas["lone"] = [Replica("lone", home / "lone.sock")]
    services = [
        {
            "name": service,
            "model": "m",
            "router": ROUTER.get(service),
            "timeouts": {"first_byte": "1s"} if service != "lone" else {},
            "replicas": [{"id": r.name, "socket": str(r.path)} for r in replicas[service]],
        }
        for service in replicas
    ]
    async with AsyncExitStack() as stack:
        for replica in itertools.chain(*replicas.values()):
            await stack.enter_async_context(replica)
        gateway = await stack.enter_async_context(Gateway(home, services))
        gateway.allow("replica .* of main/.*: unix:.* does not accept", "accepts again")
        session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        )
        whole = Whole(gateway, replicas, session, home)
        for service in replicas:
            await whole.settled(service)
        yield whole


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def unharmed(whole: Whole) -> AsyncIterator[None]:
    yield
    for service in whole.replicas:
        await whole.settled(service)


# --- it dies


@EVERY_WAY
async def test_a_replica_killed_in_a_stream_is_seen_as_a_cut(whole: Whole, service: str) -> None:
    victim = Replica("victim", whole.home / "victim.sock")
    async with replica_process(victim) as process, whole.only(service, victim):
        stream = (await begin(whole.clients(service), 1, tokens=10_000))[0]
        client = openai.AsyncOpenAI(
            base_url=f"{whole.gateway.url}/v1",
            api_key="none",
            default_headers={"Host": f"{service}.test"},
            max_retries=0,
            timeout=10,
        )
        async with client:
            chunks = await client.chat.completions.create(
                model="m",
                messages=[{"role": "user", "content": "hi"}],
                stream=True,
                max_tokens=10_000,
            )
            await anext(chunks)
            process.send_signal(signal.SIGKILL)
            with pytest.raises((httpx2.RemoteProtocolError, openai.APIConnectionError)):
                async for _ in chunks:
                    pass
        assert await stream.over() == "cut"
        # It is gone: an answer that says so, at once, and nothing of our inside.
        began = time.monotonic()
        async with whole.session.post(
            f"{whole.gateway.url}/v1/chat/completions",
            json={"model": "m", "messages": [{"role": "user", "content": "hi"}]},
            headers={"Host": f"{service}.test"},
        ) as response:
            assert response.status == 502
            assert (await response.json())["error"]["code"] == "upstream_error"
            assert not INTERNAL.search(await response.read() + str(response.headers).encode())
        assert time.monotonic() - began < 0.5


@EVERY_WAY
async def test_a_replica_that_breaks_an_answer_off_is_not_asked_again(
    whole: Whole, service: str
) -> None:
    """It had the request: what it did with it nobody knows."""
    breaker = Replica("breaker", whole.home / "breaker.sock", manner="breaks")
    async with breaker, whole.only(service, breaker):
        status, answer = await whole.clients(service).post()
        assert status == 502, answer
        assert len(breaker.inferences) == 1


# --- it vanishes


@EVERY_WAY
async def test_a_replica_that_vanishes_costs_no_request_and_is_used_again(
    whole: Whole, service: str
) -> None:
    clients = whole.clients(service)
    gone, other = whole.replicas[service]
    await gone.vanish()
    other.gap_s = gone.gap_s = 0.005  # so that the router has loads to compare
    try:
        for _ in range(5):
            await several(clients)
        await until(lambda: _states(whole, service, "unreachable"), "status says so")
        await gone.come_back()
        back = time.monotonic()
        seen = len(gone.inferences)

        async def used() -> bool:
            await several(clients)
            return len(gone.inferences) > seen

        await until(used, "it is used again")
        assert time.monotonic() - back < 2.5
    finally:
        other.gap_s = gone.gap_s = 0.0


async def several(clients: Clients) -> None:
    """Prompts that a router has never seen, all at once, so that it looks at loads."""
    answers = await asyncio.gather(
        *(clients.post(prompt=secrets.token_hex(200), max_tokens=2) for _ in range(6))
    )
    assert {status for status, _ in answers} == {200}


async def _states(whole: Whole, service: str, state: str) -> bool:
    return state in (await whole.gateway.replica_states(service)).values()


async def test_a_lone_replica_that_vanishes_is_502_at_once_and_back_within_a_second(
    whole: Whole,
) -> None:
    clients = whole.clients("lone")
    (replica,) = whole.replicas["lone"]
    await replica.vanish()
    slowest = 0.0
    for _ in range(5):
        began = time.monotonic()
        status, answer = await clients.post()
        slowest = max(slowest, time.monotonic() - began)
        assert status == 502, answer
        assert answer["error"]["code"] == "upstream_error"  # type: ignore[index]
    assert slowest < 0.25  # 100 ms on a machine that has nothing else to do
    await replica.come_back()
    back = time.monotonic()

    async def answered() -> bool:
        return (await clients.post())[0] == 200

    await until(answered)
    assert time.monotonic() - back < 1.2


@EVERY_WAY
async def test_a_plain_file_where_a_socket_was(whole: Whole, service: str) -> None:
    clients = whole.clients(service)
    broken, _ = whole.replicas[service]
    await broken.vanish(leaving="not a socket\n")
    for _ in range(6):
        assert (await clients.post(max_tokens=1))[0] == 200
    await broken.come_back()


# --- it hangs


@EVERY_WAY
async def test_a_replica_that_never_answers_is_504_at_the_limit(whole: Whole, service: str) -> None:
    mute = Replica("mute", whole.home / "mute.sock", manner="mute")
    async with mute, whole.only(service, mute):
        began = time.monotonic()
        status, answer = await whole.clients(service).post()
        took = time.monotonic() - began
        assert status == 504, answer
        assert answer["error"]["code"] == "upstream_timeout"  # type: ignore[index]
        assert 0.9 < took < 2.5
        (recorded,) = mute.inferences  # asked once, and told that nobody waits any more
        await until(lambda: recorded.outcome == "client gone")


# --- the client leaves


@EVERY_WAY
@pytest.mark.parametrize("stream", [False, True], ids=["answer", "stream"])
async def test_a_client_that_leaves_before_the_first_byte(
    whole: Whole, service: str, stream: bool
) -> None:
    replicas = whole.replicas[service]
    for replica in replicas:
        replica.stepped = True
    try:
        seen = sum(len(r.inferences) for r in replicas)
        body = {
            "model": "m",
            "stream": stream,
            "max_tokens": 1000,
            "messages": [{"role": "user", "content": "x"}],
        }
        sent = json.dumps(body).encode()
        _, writer = await asyncio.open_connection("127.0.0.1", whole.gateway.port)
        writer.write(
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {service}.test\r\n"
            "Content-Type: application/json\r\n"
            f"Content-Length: {len(sent)}\r\n\r\n".encode()
            + sent
        )
        await until(lambda: sum(len(r.inferences) for r in replicas) > seen)
        (recorded,) = [r.inferences[-1] for r in replicas if r.running]
        writer.transport.abort()
        left = time.monotonic()

        def told() -> bool:
            if stream and service == "through":
                for replica in replicas:  # the router passes it on with the next token
                    replica.step()
            return recorded.outcome == "client gone"

        await until(told, "the replica was told")
        assert time.monotonic() - left < 1
    finally:
        for replica in replicas:
            replica.stepped = False
    await until(lambda: _idle(whole, service), "nothing is counted as running")


@pytest.mark.parametrize("service", ["direct", "steered"])
async def test_a_client_that_leaves_a_quiet_stream(whole: Whole, service: str) -> None:
    replicas = whole.replicas[service]
    for replica in replicas:
        replica.stepped = True
        replica.step(2)
    try:
        stream = (await begin(whole.clients(service), 1, tokens=1000))[0]
        (recorded,) = [r.inferences[-1] for r in replicas if r.running]
        assert stream.task is not None
        stream.task.cancel()
        left = time.monotonic()
        await until(lambda: recorded.outcome == "client gone", "the replica was told")
        assert time.monotonic() - left < 1
        assert recorded.tokens == 2
    finally:
        for replica in replicas:
            replica.stepped = False
    await until(lambda: _idle(whole, service), "nothing is counted as running")


async def _idle(whole: Whole, service: str) -> bool:
    return not any((await whole.gateway.in_flight(service)).values())
