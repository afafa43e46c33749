"""Tunnels through real ssh servers: opened, refused, broken, repaired, closed."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from ssh_server import SshServer, make_key, ssh_processes
from talking import echoed, say_nothing
from waiting import until

from gatewayd.control import tunnel as tunnel_module
from gatewayd.control.outside import TunnelError
from gatewayd.control.tunnel import Tunnel
from gatewayd.control.tunnels import SshTunnels
from gatewayd.core.model import Replica, SshHop, SshTunnel, UnixAddress
from gatewayd.core.secret import Secret
from gatewayd.net.child import Child

KEY = "main/llama"


@dataclass
class App:
    """What a replica listens with: it answers each line with the same."""

    port: int = 0
    connections: int = 0
    server: asyncio.Server | None = field(default=None)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()


@pytest.fixture
async def app() -> AsyncIterator[App]:
    app = App()
    app.server = await asyncio.start_server(app.serve, "127.0.0.1", 0)
    app.port = app.server.sockets[0].getsockname()[1]
    yield app
    app.server.close()


@asynccontextmanager
async def serving(*servers: SshServer) -> AsyncIterator[None]:
    try:
        for server in servers:
            await server.start()
        yield
    finally:
        for server in servers:
            await server.stop()


@asynccontextmanager
async def tunnels(home: Path) -> AsyncIterator[SshTunnels]:
    changes: list[None] = []
    made = SshTunnels(str(home / "state"), lambda: changes.append(None))
    try:
        yield made
    finally:
        await made.aclose()
        assert not ssh_processes(str(home))
        assert not (home / "state" / "ssh").exists()


def replica(id_: str, port: int, *hops: SshHop) -> Replica:
    return Replica(id_, UnixAddress(""), "api", tunnel=SshTunnel(hops, port))


@pytest.mark.parametrize("jumps", [0, 1, 2])
async def test_a_replica_is_reached_by_as_many_servers_as_it_takes(
    tmp_path: Path, home: Path, app: App, jumps: int
) -> None:
    servers = [SshServer(tmp_path / f"s{i}") for i in range(jumps + 1)]
    async with serving(*servers), tunnels(home) as each:
        await each.open(KEY, replica("a", app.port, *(server.hop() for server in servers)))
        assert each.is_up(KEY, "a")
        assert app.connections == 0  # it was not asked
        assert await echoed(each.address(KEY, "a")) == b"hello\n"
        keys = list((home / "state" / "ssh").glob("*.keys/*"))
        assert len(keys) == jumps + 1
        assert {stat.S_IMODE(path.stat().st_mode) for path in keys} == {0o600}
        assert stat.S_IMODE((home / "state" / "ssh").stat().st_mode) == 0o700
        for pid in ssh_processes(str(home)):
            assert not [word for word in cmdline(pid) if "PRIVATE KEY" in word]
        await each.close(KEY, "a")
        assert not each.is_up(KEY, "a")
        assert not ssh_processes(str(home))
        assert list((home / "state" / "ssh").iterdir()) == []


async def test_an_app_that_does_not_listen_is_no_fault_of_the_tunnel(
    tmp_path: Path, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = SshServer(tmp_path / "s")
    async with serving(server), tunnels(home) as each:
        await each.open(KEY, replica("a", 1, server.hop()))
        assert each.is_up(KEY, "a")
        assert await echoed(each.address(KEY, "a")) == b""
        assert await echoed(each.address(KEY, "a")) == b""
        await until(lambda: "open failed" in caplog.text, "ssh says why")
        assert caplog.text.count("open failed: connect failed: Connection refused") == 1


async def test_a_server_that_forwards_nothing_says_so(
    tmp_path: Path, home: Path, app: App, caplog: pytest.LogCaptureFixture
) -> None:
    """As the last one its refusal is known with the first request, as a jump at once."""
    strict = SshServer(tmp_path / "strict", "AllowTcpForwarding no")
    server = SshServer(tmp_path / "s")
    async with serving(strict, server), tunnels(home) as each:
        with pytest.raises(TunnelError, match="administratively prohibited"):
            await each.open(KEY, replica("a", app.port, strict.hop(), server.hop()))
        await each.open(KEY, replica("b", app.port, strict.hop()))
        assert await echoed(each.address(KEY, "b")) == b""
        await until(lambda: "prohibited" in caplog.text, "ssh says why")


async def test_what_cannot_be_opened_says_why_and_leaves_nothing(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunnel_module, "OPEN_PAUSES_S", (0.0,))
    server = SshServer(tmp_path / "s")
    wrong = make_key(tmp_path / "wrong")
    cases = {
        "Permission denied \\(publickey": [server.hop(wrong)],
        "Load key .*Permission denied": [server.hop(Secret("no key"))],
        "Connection refused": [SshHop("u@127.0.0.1", 1, server.key)],
        "connect failed: Connection refused.*forwarding failed": [
            server.hop(),
            SshHop("u@127.0.0.1", 1, server.key),
        ],
        "Could not resolve hostname": [SshHop("u@nowhere.invalid", 22, server.key)],
    }
    async with serving(server), tunnels(home) as each:
        for words, hops in cases.items():
            with pytest.raises(TunnelError, match=words):
                await each.open(KEY, replica("a", 80, *hops))
            assert not each.is_up(KEY, "a")
            assert list((home / "state" / "ssh").iterdir()) == []
        await each.open(KEY, replica("a", 80, server.hop()))  # nothing of it is in the way


async def test_a_server_that_is_there_in_a_moment_is_waited_for(
    tmp_path: Path, home: Path, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who registers a replica ends its job when it is refused."""
    server = SshServer(tmp_path / "s")
    connect, attempts = Tunnel._connect, 0

    async def counted(self: Tunnel, timeout: float) -> Child:
        nonlocal attempts
        attempts += 1
        try:
            return await connect(self, timeout)
        finally:
            if attempts == 1:
                await server.start()

    monkeypatch.setattr(Tunnel, "_connect", counted)
    monkeypatch.setattr(tunnel_module, "OPEN_PAUSES_S", (0.0, 0.0))
    try:
        async with tunnels(home) as each:
            await each.open(KEY, replica("a", app.port, server.hop()))
            assert await echoed(each.address(KEY, "a")) == b"hello\n"
            assert attempts == 2
            attempts = 1
            with pytest.raises(TunnelError, match="denied"):  # no time mends that
                await each.open(KEY, replica("b", 80, server.hop(make_key(tmp_path / "k"))))
            assert attempts == 2
    finally:
        await server.stop()


async def test_a_server_that_says_nothing_is_given_up(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunnel_module, "OPEN_TIMEOUT_S", 0.5)
    mute = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    async with mute, tunnels(home) as each:
        hop = SshHop("u@127.0.0.1", mute.sockets[0].getsockname()[1], make_key(tmp_path / "k"))
        with pytest.raises(TunnelError, match="ssh did not forward within"):
            await each.open(KEY, replica("a", 80, hop))
        assert not ssh_processes(str(home))


async def test_a_registration_that_is_given_up_leaves_nothing(home: Path, tmp_path: Path) -> None:
    mute = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    async with mute, tunnels(home) as each:
        hop = SshHop("u@127.0.0.1", mute.sockets[0].getsockname()[1], make_key(tmp_path / "k"))
        opening = asyncio.create_task(each.open(KEY, replica("a", 80, hop, hop)))
        await until(lambda: len(ssh_processes(str(home))) == 2, "ssh and its jump's")
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        assert not ssh_processes(str(home))
        assert list((home / "state" / "ssh").iterdir()) == []


async def test_a_machine_without_ssh_says_what_to_install(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    async with tunnels(home) as each:
        with pytest.raises(TunnelError, match=r"install OpenSSH's client \(openssh-client\)"):
            await each.open(KEY, replica("a", 80, SshHop("u@h", 22, Secret("k"))))


async def test_what_is_closed_in_the_moment_of_its_opening_leaves_nothing(
    tmp_path: Path, home: Path
) -> None:
    server = SshServer(tmp_path / "s")
    async with serving(server), tunnels(home) as each:
        await each.open(KEY, replica("a", 80, server.hop()))
        await each.close(KEY, "a")  # nothing has had a turn in between
        assert not ssh_processes(str(home))
        opening = asyncio.create_task(each.open(KEY, replica("a", 80, server.hop())))
        await until(lambda: bool(ssh_processes(str(home))), "it is opened")
        await each.close(KEY, "a")
        with pytest.raises(TunnelError):
            await opening
        assert not ssh_processes(str(home))
        assert list((home / "state" / "ssh").iterdir()) == []


async def test_one_that_breaks_again_and_again_is_met_ever_later(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once after the first break; once it has been up for long, at once again."""
    pauses: list[int] = []

    def pause(attempt: int, chance: float) -> float:
        assert 0 <= chance < 1
        pauses.append(attempt)
        return 0.0

    monkeypatch.setattr(tunnel_module, "pause", pause)
    server = SshServer(tmp_path / "s")
    async with serving(server), tunnels(home) as each:

        async def breaks() -> None:
            before = len(pauses)
            os.kill(ssh_processes(str(home))[0], signal.SIGKILL)
            await until(lambda: len(pauses) > before, "noticed")
            await until(lambda: each.is_up(KEY, "a"), "up again")

        await each.open(KEY, replica("a", 80, server.hop()))
        await breaks()
        await breaks()
        assert pauses == [0, 1]
        monkeypatch.setattr(tunnel_module, "STABLE_AFTER_S", 0.0)
        await breaks()
        assert pauses == [0, 1, 0]


async def test_a_broken_tunnel_is_repaired_at_the_same_socket(
    tmp_path: Path, home: Path, app: App
) -> None:
    server = SshServer(tmp_path / "s")
    async with serving(server), tunnels(home) as each:
        await each.open(KEY, replica("a", app.port, server.hop(), server.hop()))
        at = each.address(KEY, "a")
        await server.stop()
        await until(lambda: not each.is_up(KEY, "a"), "down")
        assert os.path.basename(at.path) not in os.listdir(
            os.path.dirname(at.path)
        )  # refused at once, not after a while
        await until(lambda: "refused" in (each.fault(KEY, "a") or ""), "known why")
        await server.start()
        await until(lambda: each.is_up(KEY, "a"), "up again")
        assert each.fault(KEY, "a") is None
        assert await echoed(at) == b"hello\n"


async def test_a_killed_ssh_is_replaced_at_once_with_its_jumps(
    tmp_path: Path, home: Path, app: App
) -> None:
    server = SshServer(tmp_path / "s")
    async with serving(server), tunnels(home) as each:
        await each.open(KEY, replica("a", app.port, server.hop(), server.hop()))
        before = ssh_processes(str(home))
        assert len(before) == 2
        os.kill(max(before, key=lambda pid: "-L" in cmdline(pid)), signal.SIGKILL)
        await until(lambda: not each.is_up(KEY, "a"), "down")
        await until(lambda: each.is_up(KEY, "a"), "up again")
        assert not set(before) & set(ssh_processes(str(home)))
        assert await echoed(each.address(KEY, "a")) == b"hello\n"


def cmdline(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


async def test_at_the_start_nobody_waits_and_all_come_up(
    tmp_path: Path, home: Path, app: App
) -> None:
    server = SshServer(tmp_path / "s")
    names = [f"r{i}" for i in range(20)]
    async with tunnels(home) as each:
        for name in names:
            each.adopt(KEY, replica(name, app.port, server.hop()))
        assert not any(each.is_up(KEY, name) for name in names)
        async with serving(server):
            await until(lambda: all(each.is_up(KEY, name) for name in names), "all up")
            assert len(ssh_processes(str(home))) == 20
            assert await echoed(each.address(KEY, "r19")) == b"hello\n"


async def test_one_that_is_parted_stays_open_beside_its_successor(
    tmp_path: Path, home: Path, app: App
) -> None:
    server = SshServer(tmp_path / "s")
    async with serving(server), tunnels(home) as each:
        await each.open(KEY, replica("a", app.port, server.hop()))
        former, close = each.address(KEY, "a"), each.part(KEY, "a")
        assert not each.is_up(KEY, "a")
        await each.open(KEY, replica("a", app.port, server.hop()))
        assert await echoed(former) == await echoed(each.address(KEY, "a")) == b"hello\n"
        await close()
        with pytest.raises(FileNotFoundError):
            await echoed(former)
        assert await echoed(each.address(KEY, "a")) == b"hello\n"
        each.part(KEY, "a")  # what is left open is closed with the gateway


async def test_many_open_in_parallel(tmp_path: Path, home: Path, app: App) -> None:
    server = SshServer(tmp_path / "s")
    names = [f"r{i}" for i in range(20)]
    async with serving(server), tunnels(home) as each:
        await asyncio.gather(*(each.open(KEY, replica(n, app.port, server.hop())) for n in names))
        answers = await asyncio.gather(*(echoed(each.address(KEY, name)) for name in names))
        assert answers == [b"hello\n"] * 20


async def test_at_most_eight_reconnect_at_a_time(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty whose server is gone and then accepts without a word."""
    server = SshServer(tmp_path / "s")
    names = [f"r{i}" for i in range(20)]
    async with tunnels(home) as each:
        async with serving(server):
            for name in names:
                each.adopt(KEY, replica(name, 80, server.hop()))
            await until(lambda: all(each.is_up(KEY, name) for name in names), "all up")
        most = 0
        open_now: set[asyncio.StreamWriter] = set()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal most
            open_now.add(writer)
            most = max(most, len(open_now))
            await reader.read()
            open_now.discard(writer)
            writer.close()

        async with await asyncio.start_server(accept, "127.0.0.1", server.port):
            await until(lambda: len(open_now) == 8, "eight of them")
            for pid in ssh_processes(str(home)):
                os.kill(pid, signal.SIGKILL)
            await until(lambda: len(open_now) == 8, "and eight others")
            assert most == 8
            await each.aclose()


async def test_what_a_killed_gateway_left_is_removed(home: Path) -> None:
    left = home / "state" / "ssh" / "x.keys"
    left.mkdir(parents=True)
    (left / "0").write_text("PRIVATE KEY")
    async with tunnels(home):
        assert not left.exists()


async def test_a_state_directory_with_a_long_path(
    tmp_path: Path, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = SshServer(tmp_path / "s")
    made = SshTunnels(str(tmp_path / ("x" * 100)), lambda: None)
    async with serving(server):
        await made.open(KEY, replica("a", app.port, server.hop()))
        assert await echoed(made.address(KEY, "a")) == b"hello\n"
        await made.aclose()
    assert not Path(made.address(KEY, "a").path).parent.exists()
