"""`gatewayd run` as its supervisor sees it: start, signals, deaths, a second one, exit codes."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import pytest
from fake_engine import FakeEngine
from gatewayd_run import FILE, MakeRun, streamed
from processes import alive, started_with
from waiting import until


async def test_it_says_where_it_listens_and_leaves_nothing(
    make_run: MakeRun, engine: FakeEngine, client: aiohttp.ClientSession, home: Path
) -> None:
    run = await make_run().spawn().ready()
    assert "2 workers, 1 services, 1 replicas" in run.text
    async with client.get(f"{run.url}/v1/models") as response:
        assert response.status == 200
    pids = run.recorded()
    assert len(pids) == 2
    run.send(signal.SIGTERM)
    assert await run.exit_code() == 0
    assert not any(alive(pid) for pid in pids)
    assert not (home / "admin.sock").exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(run.address.rpartition(":")[2])), timeout=5)


async def test_what_runs_ends_whole_after_sigterm(
    make_run: MakeRun, engine: FakeEngine, client: aiohttp.ClientSession, home: Path
) -> None:
    run = await make_run().spawn().ready()
    engine.gap_s = 0.02
    stream = asyncio.create_task(streamed(client, run.url))
    await until(lambda: engine.running == 1)
    run.send(signal.SIGTERM)
    await until(lambda: "draining for at most 5 s" in run.text)
    admin = http.client.HTTPConnection("localhost")
    admin.sock = socket.socket(socket.AF_UNIX)
    admin.sock.connect(str(home / "admin.sock"))
    admin.request("GET", "/readyz")
    assert admin.getresponse().status == 503
    admin.close()
    assert (await stream).rstrip().endswith("data: [DONE]")
    assert await run.exit_code() == 0


async def test_a_second_signal_stops_now(
    make_run: MakeRun, engine: FakeEngine, client: aiohttp.ClientSession
) -> None:
    text = FILE.replace("drain_timeout: 5s", "drain_timeout: 1h")
    run = await make_run(text=text).spawn().ready()
    engine.gate.clear()
    stream = asyncio.create_task(streamed(client, run.url))
    await until(lambda: engine.running == 1)
    run.send(signal.SIGINT)
    await until(lambda: "draining" in run.text)
    assert run.process.poll() is None
    run.send(signal.SIGINT)
    assert await run.exit_code() == 0
    with pytest.raises(aiohttp.ClientError):
        await stream


async def test_no_connection_is_refused_while_a_worker_is_replaced(
    make_run: MakeRun, engine: FakeEngine
) -> None:
    run = await make_run().spawn().ready()
    host, _, port = run.address.rpartition(":")
    stop = asyncio.Event()
    answered: list[float] = []

    async def ask() -> None:
        while not stop.is_set():
            began = time.monotonic()
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):  # it was on the worker that died
                if (await reader.read()).startswith(b"HTTP/1.1 200"):
                    answered.append(time.monotonic() - began)
            writer.close()

    askers = [asyncio.create_task(ask()) for _ in range(4)]
    await until(lambda: len(answered) > 20)
    for slot in (0, 1):
        before = (await run.status())["workers"][slot]
        os.kill(before["pid"], signal.SIGKILL)
        await until(lambda: run.text.count("was killed by SIGKILL") > slot)  # noqa: B023
        await run.until_status(lambda s, slot=slot: s["workers"][slot]["state"] == "ready")
    enough = len(answered) + 20
    await until(lambda: len(answered) > enough)
    stop.set()
    await asyncio.gather(*askers)  # a refused connection would be raised here
    assert [w["restarts"] for w in (await run.status())["workers"]] == [1, 1]


async def test_a_hung_worker_is_replaced(make_run: MakeRun, engine: FakeEngine) -> None:
    run = await make_run().spawn().ready()
    pid = (await run.status())["workers"][0]["pid"]
    os.kill(pid, signal.SIGSTOP)
    await until(lambda: "has been silent for too long" in run.text)
    await run.until_status(lambda s: s["ready"] and s["workers"][0]["restarts"] == 1)
    assert not alive(pid)


async def test_a_second_gatewayd_on_the_same_state_names_the_first(make_run: MakeRun) -> None:
    first = await make_run().spawn().ready()
    second = make_run().spawn()
    assert await second.exit_code() == 1
    assert f"in use by another gatewayd (pid {first.process.pid})" in second.text
    assert first.process.poll() is None
    assert (await first.status())["ready"]


async def test_a_port_in_use_is_named(make_run: MakeRun, home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run = make_run(http=f"127.0.0.1:{port}").spawn()
        assert await run.exit_code() == 1
    assert f"127.0.0.1:{port}: address already in use by another process" in run.text
    assert run.text.count("\n") == 1
    assert not (home / "admin.sock").exists()


async def test_a_port_of_another_gatewayd_is_in_use_too(make_run: MakeRun, home: Path) -> None:
    first = await make_run().spawn().ready()
    text = FILE.replace("{home}/state", "{home}/other").replace("admin.sock", "other.sock")
    second = make_run(http=first.address, text=text).spawn()
    assert await second.exit_code() == 1
    assert "already in use" in second.text


async def test_a_bad_file_is_exit_2_with_every_fault(make_run: MakeRun, home: Path) -> None:
    run = make_run(text="lissten: 1\nworkers: many\n").spawn()
    assert await run.exit_code() == 2
    assert [line.partition(": ")[0] for line in run.text.splitlines()] == [
        f"{home}/gateway.yaml:1",
        f"{home}/gateway.yaml:2",
    ]


async def test_workers_serve_on_without_control_and_a_new_one_takes_over(
    make_run: MakeRun, engine: FakeEngine, client: aiohttp.ClientSession
) -> None:
    first = await make_run().spawn().ready()
    old = first.recorded()
    engine.gap_s = 0.05
    stream = asyncio.create_task(streamed(client, first.url))
    await until(lambda: engine.running == 1)
    first.process.kill()
    assert await first.exit_code() == -signal.SIGKILL
    async with client.get(f"{first.url}/v1/models") as response:
        assert response.status == 200
    second = await make_run(http=first.address).spawn().ready()
    assert second.address == first.address
    assert (await stream).rstrip().endswith("data: [DONE]")  # an old worker finished it
    await until(lambda: not any(alive(pid) for pid in old))
    await until(lambda: not set(second.recorded()) & set(old))
    async with client.get(f"{second.url}/v1/models") as response:
        assert response.status == 200
    second.send(signal.SIGTERM)
    assert await second.exit_code() == 0


async def test_sighup_reloads_and_sigusr1_reopens(
    make_run: MakeRun, engine: FakeEngine, client: aiohttp.ClientSession, home: Path
) -> None:
    run = await make_run().spawn().ready()
    run.file.write_text(run.file.read_text() + "    model: tiny\n")
    run.send(signal.SIGHUP)
    await until(lambda: "reload: services.llama.model: null -> tiny" in run.text)
    assert (await run.status())["services"][0]["model"] == "tiny"
    async with client.get(f"{run.url}/v1/models"):
        pass
    await until(lambda: "/v1/models" in (home / "access.log").read_text())
    (home / "access.log").rename(home / "access.log.1")
    run.send(signal.SIGUSR1)
    await until((home / "access.log").exists)


async def test_sockets_of_systemd_are_served_and_handed_on(
    make_run: MakeRun, engine: FakeEngine, client: aiohttp.ClientSession, home: Path
) -> None:
    """Two of one name, and the admin address."""
    run = make_run(http="fd:web", text=FILE.replace("unix:{home}/admin.sock", "fd:admin"))
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as other,
        socket.socket(socket.AF_UNIX) as admin,
    ):
        admin.bind(str(home / "admin.sock"))
        admin.listen()
        ports = [one.getsockname()[1], other.getsockname()[1]]
        fds = [each.fileno() for each in (one, admin, other)]
        # As systemd does: descriptors from 3 on, and the pid is that of the program to come.
        wrapper = (
            "import fcntl, os, sys; far = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 50)"
            " for fd in sys.argv[2:]]; "
            "[os.dup2(fd, 3 + i, inheritable=True) for i, fd in enumerate(far)]; "
            "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='3',"
            " LISTEN_FDNAMES='web:admin:web'); "
            "os.execv(sys.executable, [sys.executable, '-m', 'gatewayd', 'run', '-c', sys.argv[1]])"
        )
        with run.stderr.open("wb") as stderr:
            run.popen = subprocess.Popen(  # noqa: ASYNC220 - a supervisor's child, not ours to await
                (sys.executable, "-c", wrapper, str(run.file), *map(str, fds)),
                stderr=stderr,
                pass_fds=fds,
            )
    await run.ready()
    first = (await run.status())["pid"]
    run.send(signal.SIGUSR2)
    await until(lambda: run.text.count(" ready: http ") == 2, run.text)
    second = (await run.status())["pid"]
    assert await run.exit_code() == 0
    assert second != first
    for port in ports:
        async with client.get(f"http://127.0.0.1:{port}/v1/models") as response:
            assert response.status == 200
    os.kill(second, signal.SIGTERM)
    await until(lambda: not alive(second))
    assert (home / "admin.sock").exists()  # systemd's


@pytest.mark.parametrize("after_s", [0.1, 0.6])
async def test_stopped_while_starting_it_leaves_nobody(
    make_run: MakeRun, home: Path, after_s: float
) -> None:
    run = make_run().spawn(MARK=str(home))
    await asyncio.sleep(after_s)  # wherever it is by then
    run.send(signal.SIGTERM)
    assert await run.exit_code() in (0, -signal.SIGTERM)  # its own handler may not be there yet
    await until(lambda: not started_with(f"MARK={home}"))


def soft_limit(pid: int) -> int:
    limits = Path(f"/proc/{pid}/limits").read_text()
    return int(limits.partition("Max open files")[2].split()[0])


async def test_the_pid_is_in_the_run_directory(make_run: MakeRun, home: Path) -> None:
    run = await make_run(text=FILE + "run_dir: {home}/run\n").spawn().ready()
    pid_file = home / "run" / "gatewayd.pid"
    assert pid_file.read_text() == f"{run.process.pid}\n"
    run.send(signal.SIGTERM)
    assert await run.exit_code() == 0
    assert not pid_file.exists()


async def test_descriptors_are_not_the_first_limit(make_run: MakeRun) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    run = await make_run().spawn().ready()
    for pid in (run.process.pid, *run.recorded()):
        assert soft_limit(pid) == min(hard, 1 << 20)


async def test_events_of_workers_have_the_form_of_controls(make_run: MakeRun, home: Path) -> None:
    text = FILE.replace("{home}/access.log", "{home}/missing/access.log, format: json")
    run = make_run(text=text).spawn()
    await until(
        lambda: run.text.count("cannot open the access log") == 2 and "ready:" in run.text,
        lambda: run.text,
    )
    run.send(signal.SIGTERM)
    assert await run.exit_code() == 0
    lines = [json.loads(line) for line in run.text.splitlines()]
    assert {frozenset(line) for line in lines} == {
        frozenset({"time", "level", "logger", "message"})
    }
    assert all(line["time"].endswith("Z") for line in lines)
    (logger,) = {line["logger"] for line in lines if line["level"] == "error"}
    assert logger == "gatewayd.proxy.accesslog"


async def test_access_lines_that_are_lost_are_counted(
    make_run: MakeRun, home: Path, client: aiohttp.ClientSession
) -> None:
    run = await make_run(text=FILE.replace("/access.log", "/missing/access.log")).spawn().ready()
    for _ in range(3):
        async with client.get(f"{run.url}/") as response:
            assert response.status == 502
    connector = aiohttp.UnixConnector(str(home / "admin.sock"))
    async with aiohttp.ClientSession(connector=connector) as admin, asyncio.timeout(30):
        text = ""
        while "\ngatewayd_access_log_lines_dropped_total 3\n" not in text:
            async with admin.get("http://admin/metrics") as response:
                text = await response.text()
