"""SIGUSR2: a gateway replaces itself. Nobody is refused, nothing is cut, and when one of the two
fails the other is in charge."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine
from processes import alive
from ssh_server import SshServer, ssh_processes
from waiting import refuses, until
from whole_gateway import Gateway, processes_of

STREAM = json.dumps(
    {
        "model": "fake-model",
        "stream": True,
        "max_tokens": 600,
        "messages": [{"role": "user", "content": "x"}],
    }
).encode()
JSON = "Content-Type: application/json\r\n"


class Succeeded(Gateway):
    """A gateway whose process may be another one by now."""

    async def succeed(self) -> None:
        """Returns when the next one answers."""
        before = self.pid
        os.kill(before, signal.SIGUSR2)
        await self.close_admin()

        async def another() -> int:
            status = await self.status()
            await self.close_admin()
            return int(status["pid"]) if status["pid"] != before and status["ready"] else 0

        self.pid = await until(another, "the successor answers")

    async def until_logged(self, text: str, times: int = 1) -> None:
        await until(lambda: self.read_log().count(text) >= times, text)

    async def stop(self, *, judge: bool = True) -> None:
        await self.close_admin()
        first = self._process
        assert first is not None
        if self.pid == first.pid:
            await super().stop(judge=judge)
            return
        os.kill(self.pid, signal.SIGTERM)
        await until(lambda: not alive(self.pid), "the successor has ended")
        async with asyncio.timeout(30):
            code = await first.wait()
        if judge:
            assert code == 0, self.read_log()
            await until(lambda: not processes_of(self.tmp), "no process is left")
            self.judge()


class Load:
    """Requests that must all be answered, one connection each, and streams that must be whole."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.answered = 0
        self.failed: list[str] = []
        self._stop = asyncio.Event()

    async def ask(self, body: bytes | None = None) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        method, path = ("GET", "/v1/models") if body is None else ("POST", "/v1/chat/completions")
        length = "" if body is None else f"{JSON}Content-Length: {len(body)}\r\n"
        head = f"{method} {path} HTTP/1.1\r\nHost: llama.test\r\n{length}Connection: close\r\n\r\n"
        writer.write(head.encode() + (body or b""))
        try:
            return await reader.read()
        finally:
            writer.close()

    async def hammer(self) -> None:
        while not self._stop.is_set():
            try:
                answer = await self.ask()
            except OSError as error:
                self.failed.append(repr(error))
                continue
            if answer.startswith(b"HTTP/1.1 200"):
                self.answered += 1
            else:
                self.failed.append(repr(answer[:80]))

    async def kept_alive(self) -> None:
        """A client that keeps its connection, and repeats what was not answered at all."""
        while not self._stop.is_set():
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                while not self._stop.is_set():
                    writer.write(b"GET /v1/models HTTP/1.1\r\nHost: llama.test\r\n\r\n")
                    head = (await reader.readuntil(b"\r\n\r\n")).lower()
                    size = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
                    await reader.readexactly(size)
                    self.answered += 1
                    if b"connection: close" in head:
                        break
            writer.close()

    @contextlib.asynccontextmanager
    async def running(self, hammers: int = 4) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self.hammer()) for _ in range(hammers)]
        tasks.append(asyncio.create_task(self.kept_alive()))
        try:
            yield
        finally:
            self._stop.set()
            await asyncio.gather(*tasks)
        assert self.failed == []


def services(home: Path) -> list[dict[str, Any]]:
    return [{"name": "llama", "replicas": [{"id": "a", "socket": str(home / "a.sock")}]}]


@pytest.fixture
async def engine(home: Path) -> AsyncIterator[FakeEngine]:
    async with FakeEngine("a", home / "a.sock") as engine:
        yield engine


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


async def test_nobody_is_refused_and_nothing_is_cut_twice_in_a_row(
    home: Path, engine: FakeEngine
) -> None:
    run_dir = home / "run"
    async with Succeeded(home, services(home), run_dir=str(run_dir)) as gateway:
        first, load = gateway.pid, Load(gateway.port)
        engine.gap_s = 0.1  # a stream of a minute, until the test has seen enough
        open_then = descriptors(first)
        async with load.running():
            streams = [asyncio.create_task(load.ask(STREAM)) for _ in range(20)]
            await until(lambda: engine.running == 20)
            await gateway.succeed()
            assert not any(stream.done() for stream in streams)
            assert alive(first)  # it carries them
            second = gateway.pid
            enough = load.answered + 50
            await until(lambda: load.answered > enough, "the successor serves")
            await gateway.change(
                "llama/replicas/register", {"id": "b", "url": "http://127.0.0.1:9"}
            )
            await gateway.remove("llama", "b")
            await gateway.succeed()
            engine.gap_s = 0.0
            whole = await asyncio.gather(*streams)
            assert all(b"\ndata: [DONE]\n" in answer for answer in whole), whole[0]
            await until(lambda: not alive(first) and not alive(second))
            assert (run_dir / "gatewayd.pid").read_text() == f"{gateway.pid}\n"
        # Nothing is handed on that nobody uses.
        await until(lambda: descriptors(gateway.pid) <= open_then + 2)
        gateway.allow("accept connections")


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1)])
async def test_the_number_of_workers_may_change(
    home: Path, engine: FakeEngine, before: int, after: int
) -> None:
    async with Succeeded(home, services(home), workers=before) as gateway:
        load = Load(gateway.port)
        gateway.config["workers"] = after
        gateway.write_file()
        async with load.running():
            await gateway.succeed()
            assert len(await gateway.worker_pids()) == after
            enough = load.answered + 100
            await until(lambda: load.answered > enough)


async def test_addresses_that_the_file_no_longer_names_are_closed(
    home: Path, engine: FakeEngine
) -> None:
    async with Succeeded(home, services(home)) as gateway:
        old = gateway.port
        gateway.config["listen"]["http"] = f"unix:{home}/public.sock"
        gateway.write_file()
        await gateway.succeed()
        # The predecessor closes it once it has been told that the successor took over.
        await until(lambda: refuses(old), "the address is closed")
        reader, writer = await asyncio.open_unix_connection(str(home / "public.sock"))
        writer.write(b"GET /v1/models HTTP/1.1\r\nHost: llama.test\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()


@pytest.mark.parametrize("mode", ["steer", "through"])
async def test_streams_by_way_of_a_router_end_whole(
    home: Path, engine: FakeEngine, mode: str
) -> None:
    router = {"type": "sglang", "mode": mode, "policy": "round_robin"}
    routed = [{**service, "router": router} for service in services(home)]
    async with Succeeded(home, routed) as gateway:
        first = await gateway.router_pid("llama")
        load = Load(gateway.port)
        engine.gap_s = 0.1
        streams = [asyncio.create_task(load.ask(STREAM)) for _ in range(6)]
        await until(lambda: engine.running == 6)
        await gateway.succeed()
        assert await gateway.router_pid("llama") != first
        assert alive(first)
        assert not any(stream.done() for stream in streams)
        engine.gap_s = 0.0
        for answer in await asyncio.gather(*streams):
            assert b"\ndata: [DONE]\n" in answer
        await until(lambda: not alive(first), "the first router is gone")
        assert (await load.ask(STREAM)).startswith(b"HTTP/1.1 200")


async def test_a_stream_through_a_tunnel_ends_whole_and_the_next_has_its_own(
    home: Path, tmp_path: Path
) -> None:
    async with FakeEngine("a", host="127.0.0.1") as engine:
        sshd = SshServer(tmp_path / "sshd")
        await sshd.start()
        ssh = {
            "host": sshd.destination,
            "port": sshd.port,
            "app_port": engine.port,
            "identity": sshd.identity,
        }
        routed = [{"name": "llama", "replicas": [{"id": "a", "ssh": ssh}]}]
        try:
            async with Succeeded(home, routed) as gateway:
                load = Load(gateway.port)
                engine.gap_s = 0.1
                async with load.running(2):
                    streams = [asyncio.create_task(load.ask(STREAM)) for _ in range(4)]
                    await until(lambda: engine.running == 4)
                    await gateway.succeed()
                    assert not any(stream.done() for stream in streams)
                    engine.gap_s = 0.0
                    for answer in await asyncio.gather(*streams):
                        assert b"\ndata: [DONE]\n" in answer
                    await until(lambda: len(ssh_processes(str(home))) == 1)
                    enough = load.answered + 50
                    await until(lambda: load.answered > enough)
        finally:
            await sshd.stop()


async def test_a_file_with_a_mistake_leaves_the_old_one_in_charge(
    home: Path, engine: FakeEngine
) -> None:
    async with Succeeded(home, services(home)) as gateway:
        gateway.allow("the successor")
        good = gateway.file.read_text()
        gateway.file.write_text(good + "lissten: 1\n")
        load = Load(gateway.port)
        async with load.running():
            gateway.signal(signal.SIGUSR2)
            await gateway.until_logged("exited with status 2; this one goes on")
            assert (await gateway.status())["pid"] == gateway.pid
            gateway.file.write_text(good)
            await gateway.succeed()


def successor_of(gateway: Gateway) -> int:
    """Its child that is a gateway too."""
    for pid in Path(f"/proc/{gateway.pid}/task/{gateway.pid}/children").read_text().split():
        if b"\0run\0" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return int(pid)
    return 0


def kill_successor(gateway: Gateway, when: Callable[[], bool]) -> None:
    """In a thread: the moment is short."""
    deadline = time.monotonic() + 20
    while not (successor := successor_of(gateway)) or not when():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(successor, signal.SIGKILL)


def recorded(home: Path) -> set[int]:
    """The data plane that a later gateway would find."""
    return {entry["pid"] for entry in json.loads((home / "state" / "workers.json").read_text())}


@pytest.mark.parametrize("serving", [False, True])
async def test_a_successor_that_is_killed_while_starting_is_got_over(
    home: Path, engine: FakeEngine, serving: bool
) -> None:
    async with Succeeded(home, services(home)) as gateway:
        gateway.allow(
            "the successor", "of an earlier control drains", "control is gone", "accept connections"
        )
        load, workers = Load(gateway.port), set(await gateway.worker_pids())
        async with load.running():
            gateway.signal(signal.SIGUSR2)
            # Once they are recorded its workers exist, and may have accepted already.
            moment = (lambda: recorded(home) > workers) if serving else (lambda: True)
            await asyncio.to_thread(kill_successor, gateway, moment)
            await gateway.until_logged("was killed by SIGKILL; this one goes on")
            await until(lambda: recorded(home) == workers)
            await until(lambda: len(processes_of(gateway.tmp)) == 3, "its workers are gone")
            url = {"id": "b", "url": "http://127.0.0.1:9"}
            await gateway.change("llama/replicas/register", url)
            await gateway.remove("llama", "b")
            assert set(await gateway.worker_pids()) == workers


async def test_a_stop_while_the_successor_starts_ends_both(home: Path, engine: FakeEngine) -> None:
    async with Succeeded(home, services(home)) as gateway:
        gateway.signal(signal.SIGUSR2)
        await until(lambda: successor_of(gateway))
        gateway.signal(signal.SIGTERM)
        assert await gateway.exited(30) == 0


async def test_systemd_is_told_who_the_unit_is_now(home: Path, engine: FakeEngine) -> None:
    heard: list[str] = []

    def listen(sock: socket.socket) -> None:
        data, fds, _, _ = socket.recv_fds(sock, 4096, 4)
        heard.extend(line for line in data.decode().split("\n") if not line.startswith("MONO"))
        for fd in fds:
            os.close(fd)  # what the barrier waits for

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(home / "notify"))
        systemd.setblocking(False)
        asyncio.get_running_loop().add_reader(systemd, listen, systemd)
        env = {"NOTIFY_SOCKET": str(home / "notify")}
        async with Succeeded(home, services(home), env=env) as gateway:
            gateway.signal(signal.SIGHUP)
            await until(lambda: heard == ["READY=1", "RELOADING=1", "READY=1"], str(heard))
            await gateway.succeed()
            await until(lambda: heard[3:] == [f"MAINPID={gateway.pid}", "BARRIER=1", "READY=1"])
        assert heard[6:] == ["STOPPING=1"]
        asyncio.get_running_loop().remove_reader(systemd)
