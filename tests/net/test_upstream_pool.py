"""Connecting and keeping connections, on real Unix and loopback sockets."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from pathlib import Path

import pytest

from gatewayd.core.model import Address, TcpAddress, UnixAddress
from gatewayd.core.retry import Failure
from gatewayd.net import pool as pools
from gatewayd.net.pool import ConnectFailedError, Pool
from gatewayd.net.upstream import UpstreamConnection


def pool_of(address: Address) -> Pool:
    return Pool(address, asyncio.get_running_loop(), idle_s=2.0)


async def nobody(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


@pytest.fixture
async def unix(tmp_path: Path):  # type: ignore[no-untyped-def]
    server = await asyncio.start_unix_server(nobody, tmp_path / "a.sock")
    yield UnixAddress(str(tmp_path / "a.sock"))
    server.close()
    await server.wait_closed()


async def test_the_last_put_back_is_the_first_taken(unix: UnixAddress) -> None:
    pool = pool_of(unix)
    connections = [await pool.connect(1.0) for _ in range(3)]
    for connection in connections:
        pool.put(connection)
    assert repr(pool) == f"<Pool unix:{unix.path} [3 idle]>"
    assert pool.take() is connections[2]
    assert connections[2].reused
    assert not connections[1].reused
    connections[2].abort()
    pool.close()
    assert pool.take() is None


async def test_only_what_is_new_enough_is_taken(unix: UnixAddress) -> None:
    pool = pool_of(unix)
    connection = await pool.connect(1.0)
    pool.put(connection)
    now = pool.loop.time()
    assert pool.take(newer_than=now + 1) is None
    assert pool.take(newer_than=now - 1) is connection
    connection.abort()


async def test_what_is_old_is_closed_and_the_rest_kept(unix: UnixAddress) -> None:
    pool = pool_of(unix)
    old, new = [await pool.connect(1.0) for _ in range(2)]
    pool.put(old)
    pool.put(new)
    old.idle_since -= 10
    pool.close_idle(older_than=pool.loop.time() - 5)
    assert pool._idle == [new]
    assert old.transport.is_closing()
    pool.close()
    assert new.transport.is_closing()


async def test_a_closed_pool_keeps_nothing(unix: UnixAddress) -> None:
    pool = pool_of(unix)
    connection = await pool.connect(1.0)
    pool.close()
    pool.put(connection)
    assert connection.transport.is_closing()
    assert pool.take() is None


async def test_a_pool_is_bounded(unix: UnixAddress, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "_MAX_IDLE", 2)
    pool = pool_of(unix)
    connections = [await pool.connect(1.0) for _ in range(3)]
    for connection in connections:
        pool.put(connection)
    assert [c.transport.is_closing() for c in connections] == [False, False, True]
    pool.close()


async def test_a_connection_that_has_read_its_end_is_not_taken(unix: UnixAddress) -> None:
    pool = pool_of(unix)
    old, ending = [await pool.connect(1.0) for _ in range(2)]
    pool.put(old)
    pool.put(ending)
    ending.transport.close()  # as the loop does at the end of a stream, a turn before it says so
    assert pool.take() is old
    assert pool.take() is None
    old.abort()


async def test_a_connection_that_ends_as_it_begins_is_none(
    unix: UnixAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = pool_of(unix)
    connect = pool._connect_unix

    async def ended(
        self: Pool, address: UnixAddress, timeout_s: float | None
    ) -> UpstreamConnection:
        connection = await connect(address, timeout_s)
        connection.transport.abort()
        await asyncio.sleep(0)
        return connection

    monkeypatch.setattr(Pool, "_connect_unix", ended)
    with pytest.raises(ConnectFailedError) as failed:
        await pool.connect(1.0)
    assert failed.value.failure is Failure.CONNECT


async def test_tcp_is_dialled_too() -> None:
    server = await asyncio.start_server(nobody, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    connection = await pool_of(TcpAddress("127.0.0.1", port)).connect(1.0)
    assert isinstance(connection, UpstreamConnection)
    connection.abort()
    server.close()
    await server.wait_closed()


async def test_whatever_refuses_is_one_failure(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("")
    with socket.socket() as unused, socket.socket(socket.AF_UNIX) as bound:
        unused.bind(("127.0.0.1", 0))
        bound.bind(str(tmp_path / "bound"))
        for address in (
            UnixAddress(str(tmp_path / "missing")),
            UnixAddress(str(plain)),
            UnixAddress(str(tmp_path)),
            UnixAddress(str(tmp_path / "bound")),
            UnixAddress("/" + "x" * 200),
            TcpAddress("127.0.0.1", unused.getsockname()[1]),
        ):
            with pytest.raises(ConnectFailedError) as failed:
                await pool_of(address).connect(1.0)
            assert failed.value.failure is Failure.CONNECT
            assert str(failed.value)


async def test_a_connection_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    path = str(tmp_path / "full")
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as filler:
        listening.bind(path)
        listening.listen(0)
        filler.connect(path)
        held = []
        for _ in range(4):
            with pytest.raises(ConnectFailedError) as failed:
                await pool_of(UnixAddress(path)).connect(0.03)
            assert failed.value.failure is Failure.TIMEOUT_CONNECT
            await asyncio.sleep(0)
            held.append(len(os.listdir("/proc/self/fd")))
        assert held[1:] == held[:1] * 3


async def test_without_a_bound_a_busy_peer_is_waited_for(tmp_path: Path) -> None:
    path = str(tmp_path / "busy")
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as filler:
        listening.bind(path)
        listening.listen(0)
        filler.connect(path)
        connecting = asyncio.ensure_future(pool_of(UnixAddress(path)).connect(None))
        await asyncio.sleep(0.03)
        assert not connecting.done()
        listening.accept()[0].close()
        connection = await asyncio.wait_for(connecting, 2.0)
        connection.abort()
        await asyncio.sleep(0)


async def test_a_connect_that_is_cancelled_leaves_nothing_open(unix: UnixAddress) -> None:
    pool = pool_of(unix)
    before = len(os.listdir("/proc/self/fd"))
    for turns in range(8):
        connecting = asyncio.ensure_future(pool.connect(1.0))
        for _ in range(turns):
            await asyncio.sleep(0)
        if connecting.cancel():
            with pytest.raises(asyncio.CancelledError):
                await connecting
        else:
            connecting.result().abort()
    async with asyncio.timeout(30):
        while len(os.listdir("/proc/self/fd")) > before:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_who_has_no_descriptor_left_says_so_once_until_it_has(
    unix: UnixAddress, caplog: pytest.LogCaptureFixture
) -> None:
    pool = pool_of(unix)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for times in (1, 2):
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            for _ in range(3):
                with pytest.raises(ConnectFailedError):
                    await pool.connect(1.0)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert caplog.text.count("no descriptor is left to connect to unix:") == times
        (await pool.connect(1.0)).abort()
