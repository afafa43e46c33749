"""Which connection to the router takes a request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from multiplexed import HEAD, Asker, Router
from waiting import until

from gatewayd.core.model import TcpAddress, UnixAddress
from gatewayd.core.retry import Failure
from gatewayd.net.mux import Mux
from gatewayd.net.mux_pool import MuxPool
from gatewayd.net.pool import ConnectFailedError

# --- the pool


@asynccontextmanager
async def router(path: Path) -> AsyncIterator[tuple[Router, MuxPool]]:
    scripted = Router("router", path)
    await scripted.start()
    pool = MuxPool(UnixAddress(str(path)), asyncio.get_running_loop())
    try:
        yield scripted, pool
    finally:
        pool.close()
        await scripted.stop()


async def test_one_connection_serves_many_until_it_is_full(path: Path) -> None:
    async with router(path) as (scripted, pool):
        assert pool.take() is None
        askers = []
        for _ in range(450):
            mux = pool.take() or await pool.connect(5)
            askers.append(Asker())
            mux.post(askers[-1], HEAD, b"{}")
            if len(askers) == 1:
                await scripted.asked()
                await until(lambda mux=mux: mux._most == 200)
        await until(lambda: sum(len(p.asking) for p in scripted.peers) == 450)
        # The peers of the second and third had not said yet how many they take.
        assert 3 <= len(scripted.peers) <= 5
        for peer in scripted.peers:
            assert len(peer.asking) <= 200
            for asking in peer.asking.values():
                asking.answer()
        for asker in askers:
            assert await asker.end() == "answered"
        first = pool.take()
        assert first is pool._all[0]
        pool.close_idle(asyncio.get_running_loop().time() + 1)
        await until(lambda: all(peer.gone for peer in scripted.peers))
        assert pool.take() is None


async def test_those_who_come_together_share_what_is_being_made(path: Path) -> None:
    async with router(path) as (scripted, pool):

        async def one() -> None:
            mux = pool.take() or await pool.connect(5)
            mux.post(Asker(), HEAD, b"{}")

        await asyncio.gather(*(one() for _ in range(60)))
        await until(lambda: scripted.peers and len(scripted.peers[0].asking) == 60)
        assert len(scripted.peers) == 1


async def test_a_dead_connection_is_not_taken(path: Path) -> None:
    async with router(path) as (scripted, pool):
        mux = await pool.connect(5)
        await until(lambda: scripted.peers)
        scripted.peers[0].die()
        await until(lambda: not mux.free)
        assert pool.take() is None
        again = await pool.connect(5)
        assert again is not mux
        assert pool._all == [again]
        await until(lambda: len(scripted.peers) == 2)


async def test_retired_connections_end_with_what_they_carry(path: Path) -> None:
    async with router(path) as (scripted, pool):
        mux = await pool.connect(5)
        asker = Asker()
        mux.post(asker, HEAD, b"{}")
        asking = await scripted.asked()
        pool.retire()
        assert pool.take() is None
        asking.answer()
        assert await asker.end() == "answered"
        await until(lambda: scripted.peers[0].gone)


async def test_nobody_listens(path: Path) -> None:
    loop = asyncio.get_running_loop()
    for address in (UnixAddress(str(path)), TcpAddress("127.0.0.1", 1)):
        pool = MuxPool(address, loop)
        with pytest.raises(ConnectFailedError) as caught:
            await pool.connect(5)
        assert caught.value.failure is Failure.CONNECT


async def test_a_connect_that_takes_too_long(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = MuxPool(UnixAddress(str(path)), asyncio.get_running_loop())

    async def never(*_: object) -> Mux:
        return await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(pool, "_connect", never)
    waits: list[Callable[[], object]] = [lambda: pool.connect(0.05)] * 2
    failures = await asyncio.gather(*(wait() for wait in waits), return_exceptions=True)  # type: ignore[call-overload]
    assert [f.failure for f in failures] == [Failure.TIMEOUT_CONNECT] * 2
