"""Folders with short names: the path of a Unix socket has at most 107 bytes."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
from ssh_server import SshServer

pytest.register_assert_rewrite(
    *("whole_gateway", "whole_replicas", "whole_routed", "whole_streams", "whole_watch")
)


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gw") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def shared_home() -> Iterator[Path]:
    """For a gateway that several tests use."""
    with tempfile.TemporaryDirectory(prefix="gw") as folder:
        yield Path(folder)


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield session


@pytest.fixture
async def sshd(tmp_path: Path) -> AsyncIterator[SshServer]:
    server = SshServer(tmp_path / "sshd")
    await server.start()
    yield server
    await server.stop()
