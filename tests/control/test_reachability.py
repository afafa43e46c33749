"""Replicas that refuse connections: believed only after a look, and looked at until they answer."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from plant import service
from waiting import until

from gatewayd.control import reachability as module
from gatewayd.control.reachability import Reachability, probe
from gatewayd.control.state import State
from gatewayd.core.model import Replica, TcpAddress, UnixAddress

KEY = ("main/llama", "a")


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gw") as folder:
        yield Path(folder)


class Watched:
    def __init__(self, home: Path) -> None:
        self.path = home / "a.sock"
        self.state = State()
        self.changes: list[bool] = []
        self.put(Replica("a", UnixAddress(str(self.path))))
        self.reachability = Reachability(self.state, self.changed)

    def put(self, *replicas: Replica) -> None:
        llama = service("llama")
        self.state.services = {KEY[0]: type(llama)("main", "llama", (), replicas=replicas)}

    def changed(self) -> None:
        self.changes.append(KEY in self.state.unreachable)


@pytest.fixture
def watched(home: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    monkeypatch.setattr(module, "PROBE_EVERY_S", 0.02)
    return Watched(home)


async def test_a_refusal_is_marked_until_it_accepts_again(watched: Watched) -> None:
    watched.reachability.suspect(*KEY)
    await until(lambda: watched.changes == [True])
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(watched.path))
        sock.listen()
        await until(lambda: watched.changes == [True, False])
    assert watched.state.unreachable == set()
    await watched.reachability.aclose()


async def test_a_suspicion_that_is_wrong_changes_nothing(watched: Watched) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(watched.path))
        sock.listen()
        watched.reachability.suspect(*KEY)
        watched.reachability.suspect(*KEY)
        await until(lambda: not watched.reachability._watches)
    assert watched.changes == []


async def test_the_watch_ends_with_the_replica(watched: Watched) -> None:
    watched.reachability.suspect(*KEY)
    await until(lambda: watched.changes == [True])
    watched.put()
    await until(lambda: not watched.reachability._watches)
    assert watched.state.unreachable == set()


async def test_strangers_are_not_looked_at(watched: Watched) -> None:
    watched.reachability.suspect("main/none", "a")
    watched.reachability.suspect("main/llama", "none")
    assert not watched.reachability._watches


async def test_new_replicas_are_looked_at_once(watched: Watched) -> None:
    watched.reachability.look_at_new()
    await until(lambda: watched.changes == [True])
    watched.reachability.look_at_new()
    assert len(watched.reachability._watches) == 1
    await watched.reachability.aclose()


async def test_probing(home: Path) -> None:
    assert "No such file" in str(await probe(UnixAddress(str(home / "none"))))
    (home / "plain").write_text("")
    assert "it is not a socket" in str(await probe(UnixAddress(str(home / "plain"))))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert await probe(TcpAddress("127.0.0.1", port)) is None
    assert "does not accept" in str(await probe(TcpAddress("127.0.0.1", port)))
    assert "does not accept" in str(await probe(TcpAddress("a..b", 80)))
    await asyncio.sleep(0)


async def test_many_new_replicas_are_looked_at_a_few_at_a_time(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, most, asked = 0, 0, 0

    async def count(_: object) -> None:
        nonlocal running, most, asked
        running, asked = running + 1, asked + 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    monkeypatch.setattr(module, "probe", count)
    watched.put(*(Replica(str(i), UnixAddress(f"/run/{i}.sock")) for i in range(500)))
    watched.reachability.look_at_new()
    await until(lambda: asked == 500 and running == 0)
    assert most == module.PROBES_AT_A_TIME
    await watched.reachability.aclose()
