"""Sockets of tunnels: one keeps its name while it is there; names nobody has are forgotten."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gatewayd.control.tunnels import SshTunnels
from gatewayd.core.model import Replica, SshHop, SshTunnel, UnixAddress

KEY = "main/llama"


@pytest.fixture
async def tunnels(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SshTunnels]:
    monkeypatch.setattr("gatewayd.control.tunnels._REMEMBERED", 3)
    with tempfile.TemporaryDirectory(prefix="gw") as home:
        made = SshTunnels(str(Path(home) / "state"), lambda: None)
        yield made
        await made.aclose()


def adopt(tunnels: SshTunnels, name: str) -> None:
    """Nobody listens there: it goes on trying."""
    hop = SshHop("x@127.0.0.1", 1)
    tunnel = SshTunnel((hop,), 1)
    tunnels.adopt(KEY, Replica(name, UnixAddress("/nowhere"), tunnel=tunnel))


async def test_a_name_lasts_as_long_as_anything_is_called_by_it(tunnels: SshTunnels) -> None:
    adopt(tunnels, "a")
    plain, close = tunnels.address(KEY, "a"), tunnels.part(KEY, "a")
    adopt(tunnels, "a")
    second = tunnels.address(KEY, "a")
    assert second != plain
    for turn in range(50):
        tunnels.part(KEY, f"r{turn}")
    assert tunnels.address(KEY, "a") == second  # it is up
    await tunnels.close(KEY, "a")
    for turn in range(50):
        tunnels.part(KEY, f"r{turn}")
    assert tunnels.address(KEY, "a") == second  # the former one still has the other
    await close()
    tunnels.part(KEY, "r0")
    assert tunnels.address(KEY, "a") == plain
    assert len(tunnels._parted) == 3
