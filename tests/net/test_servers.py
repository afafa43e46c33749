"""Sockets in a directory: which are asked, and which are put away."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from conversation import reply

from gatewayd.net.servers import NoServerError, Servers


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def servers(tmp_path: Path, clock: Clock) -> AsyncIterator[Servers]:
    servers = Servers(str(tmp_path), clock=clock)
    yield servers
    await servers.aclose()


def dead(path: Path) -> Path:
    """A socket that nobody listens on."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    return path


async def ask(servers: Servers) -> int:
    async with asyncio.timeout(30):
        return await servers.post("/x", {})


async def in_vain(servers: Servers) -> None:
    with pytest.raises(NoServerError):
        await ask(servers)


async def test_a_socket_that_refuses_for_two_minutes_is_removed(
    tmp_path: Path, servers: Servers, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    path = dead(tmp_path / "a.sock")
    for _ in range(3):
        await in_vain(servers)
        assert path.exists()
        clock.now += 59.9
    clock.now += 1
    await in_vain(servers)
    assert not path.exists()
    assert "a.sock has refused for 120 s: removed" in caplog.text
    await in_vain(servers)


async def test_a_socket_made_anew_begins_anew(
    tmp_path: Path, servers: Servers, clock: Clock
) -> None:
    path = dead(tmp_path / "a.sock")
    await in_vain(servers)
    clock.now += 119
    fresh = dead(tmp_path / "fresh")  # beside it, so that it has another inode
    fresh.replace(path)
    clock.now += 10
    await in_vain(servers)
    clock.now += 119
    await in_vain(servers)
    assert path.exists()
    clock.now += 2
    await in_vain(servers)
    assert not path.exists()


async def test_one_that_answered_meanwhile_is_not_removed(
    tmp_path: Path, servers: Servers, clock: Clock
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply(b"{}", "Connection: close"))
        await writer.drain()
        writer.close()

    path = tmp_path / "a.sock"
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))  # it refuses until somebody listens
    await in_vain(servers)
    clock.now += 119
    async with await asyncio.start_unix_server(answer, sock=sock):
        assert await ask(servers) == 200
    for _ in range(2):
        clock.now += 60
        await in_vain(servers)
    assert path.exists()


async def test_nothing_else_is_asked_or_touched(
    tmp_path: Path, servers: Servers, clock: Clock
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    dead(tmp_path / "a.socket")
    dead(elsewhere / "b.sock")
    (tmp_path / "c.sock").write_text("a file")
    (tmp_path / "d.sock").symlink_to(elsewhere / "b.sock")
    for _ in range(2):
        await in_vain(servers)
        clock.now += 500
    assert {*os.listdir(tmp_path)} == {"elsewhere", "a.socket", "c.sock", "d.sock"}
    assert (elsewhere / "b.sock").exists()


async def test_without_a_directory_there_is_no_server(tmp_path: Path) -> None:
    servers = Servers(str(tmp_path / "missing"))
    await in_vain(servers)
    await servers.aclose()
