"""The command line as an operator types it: what it prints, where, and the exit code."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import gatewayd

FILE = """
name: testing
backend: aws
domain: example.com
listen: {{http: "127.0.0.1:0", admin: "unix:{home}/admin.sock"}}
workers: 1
state_dir: {home}/state
auth: {{type: tokens, tokens: [{{name: alice, token: "s3cr3t-of-alice"}}]}}
services:
  - name: llama
    auth: false
    replicas: [{{id: a, socket: {home}/a.sock}}]
"""


@dataclass
class Done:
    code: int
    out: str
    err: str


def gatewayd_(*args: str, **environ: str) -> Done:
    env = {k: v for k, v in os.environ.items() if k != "GATEWAYD_ADMIN"} | environ
    done = subprocess.run(
        (sys.executable, "-m", "gatewayd", *args),
        capture_output=True,
        text=True,
        timeout=60,
        env=env,
        stdin=subprocess.DEVNULL,
    )
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gw") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def file(home: Path) -> Path:
    path = home / "gateway.yaml"
    path.write_text(FILE.format(home=home))
    return path


@pytest.fixture(scope="module")
def admin(home: Path, file: Path) -> Iterator[str]:
    """The admin address of a gateway that runs."""
    with socket.socket(socket.AF_UNIX) as replica:
        replica.bind(str(home / "a.sock"))
        replica.listen()
        popen = subprocess.Popen(
            (sys.executable, "-m", "gatewayd", "run", "-c", str(file)),
            stderr=subprocess.PIPE,
            text=True,
        )
        assert popen.stderr is not None
        lines = []
        for line in popen.stderr:
            lines.append(line)
            if "ready: http 127.0.0.1:" in line:
                break
        else:
            raise AssertionError("".join(lines))
        yield f"unix:{home}/admin.sock"
        popen.send_signal(signal.SIGTERM)
        popen.communicate(timeout=30)
        assert popen.returncode == 0


def test_version() -> None:
    assert gatewayd_("version") == Done(0, f"{gatewayd.__version__}\n", "")


@pytest.mark.parametrize("args", [(), ("dance",), ("run",), ("replica", "add"), ("check", "-x")])
def test_wrong_usage_is_exit_2(args: tuple[str, ...]) -> None:
    done = gatewayd_(*args)
    assert (done.code, done.out) == (2, "")
    assert "usage: gatewayd" in done.err


def test_help_names_every_command() -> None:
    done = gatewayd_("--help")
    assert done.code == 0
    for command in ("run", "check", "demo", "schema", "version", "status", "reload", "service"):
        assert f"\n    {command} " in done.out


def test_the_schema_is_json() -> None:
    done = gatewayd_("schema")
    assert done.code == 0
    assert "services" in json.loads(done.out)["properties"]


def test_check_of_a_good_file(file: Path) -> None:
    assert gatewayd_("check", "-c", str(file)) == Done(
        0, f"{file}: good, 1 services, 1 replicas\n", ""
    )


def test_check_prints_what_is_effective_without_secrets(file: Path) -> None:
    done = gatewayd_("check", "-c", str(file), "--print")
    assert done.code == 0
    assert "drain_timeout: 30s" in done.out
    assert "s3cr3t" not in done.out


def test_check_says_every_mistake_with_its_place(home: Path) -> None:
    bad = home / "bad.yaml"
    bad.write_text(
        "domian: x.example\nworkers: -1\nservices:\n  - name: a\n    replicas: [a.sock]\n"
    )
    done = gatewayd_("check", "-c", str(bad))
    assert (done.code, done.out) == (2, "")
    assert f"{bad}:1: domian: unknown key; did you mean `domain`?" in done.err
    assert f"{bad}:2: workers: " in done.err
    assert f"{bad}:5: services[0].replicas[0]: " in done.err


def test_check_asks_the_router_what_it_knows(home: Path) -> None:
    bad = home / "router.yaml"
    bad.write_text("domain: x.example\nrouter: {type: sglang, policy: clairvoyant}\n")
    done = gatewayd_("check", "-c", str(bad))
    assert done.code == 2
    assert f"{bad}:2: router" in done.err
    assert "clairvoyant" in done.err
    assert "cache_aware" in done.err


def test_check_names_a_limit_that_no_request_meets(home: Path) -> None:
    file = home / "limits.yaml"
    file.write_text(
        "domain: x.example\nrouter: sglang\nservices:\n  - name: a\n    rate_limits:\n"
        "      - {prefix: /v1/chat/, rps: 1}\n      - {prefix: /v2/, rps: 1}\n"
    )
    done = gatewayd_("check", "-c", str(file))
    assert (done.code, done.out) == (0, f"{file}: good, 1 services, 0 replicas\n")
    assert done.err == (
        f"{file}: service main/a: the rate limit of prefix /v2/ has no effect: "
        "only these paths are allowed: /generate, /chat/completions, /v1/\n"
    )


def test_a_file_that_is_not_there() -> None:
    for command in ("check", "run"):
        done = gatewayd_(command, "-c", "/no/such/file.yaml")
        assert (done.code, done.out) == (2, "")
        assert "/no/such/file.yaml: cannot be read: No such file or directory" in done.err


def test_nobody_is_there_to_ask(home: Path) -> None:
    done = gatewayd_("status", "--admin", f"unix:{home}/none.sock")
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        f"gatewayd: cannot reach a gateway at unix:{home}/none.sock: No such file or directory; "
        "is it running? --admin, GATEWAYD_ADMIN or -c say where\n"
    )


def test_an_address_that_is_none() -> None:
    done = gatewayd_("status", "--admin", "nowhere")
    assert (done.code, done.err.startswith("gatewayd: admin address nowhere: ")) == (1, True)


def test_something_else_answers_at_the_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        popen = subprocess.Popen(
            (sys.executable, "-m", "gatewayd", "status", "--admin", f"127.0.0.1:{port}"),
            stderr=subprocess.PIPE,
            text=True,
        )
        server.settimeout(30)
        connection, _ = server.accept()
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
        connection.close()
        _, err = popen.communicate(timeout=30)
    assert popen.returncode == 1
    assert err == f"gatewayd: what answers at 127.0.0.1:{port} is not a gateway (status 200)\n"


def test_status_for_eyes_and_for_programs(admin: str, file: Path, home: Path) -> None:
    for args, environ in (
        (("--admin", admin), {}),
        ((), {"GATEWAYD_ADMIN": admin}),
        (("-c", str(file)), {}),
    ):
        done = gatewayd_("status", *args, **environ)
        assert (done.code, done.err) == (0, "")
        assert done.out.startswith(f"testing: gatewayd {gatewayd.__version__}, ready, pid ")
    lines = [line.split() for line in done.out.splitlines()]
    assert ["backend:", "aws"] in lines
    assert ["llama", "llama.example.com", "file", "no", "-", "0", "0"] in lines
    assert ["llama", "a", "up", "0", f"unix:{home}/a.sock"] in lines
    as_json = json.loads(gatewayd_("status", "--json", "--admin", admin).out)
    assert as_json["services"][0]["replicas"][0]["state"] == "up"
    assert "s3cr3t" not in done.out + json.dumps(as_json)


def test_services_and_replicas_come_and_go(admin: str, home: Path) -> None:
    def change(*args: str) -> Done:
        return gatewayd_(*args, "--admin", admin)

    assert change("service", "add", "new", "--no-auth", "--domain", "new.test") == Done(
        0, "new added\n", ""
    )
    address = f"unix:{home}/a.sock"
    done = change("replica", "add", "new", address, "--id", "x")
    assert done == Done(0, "replica x added to new\n", "")
    assert change("replica", "add", "new", address, "--id", "x") == Done(
        1, "", "gatewayd: Replica x already exists in service main/new\n"
    )
    made = change("replica", "add", "new", "http://127.0.0.1:9").out.split()
    assert made[:1] + made[2:] == ["replica", "added", "to", "new"]
    assert "new.test" in change("status").out
    assert change("replica", "drain", "new", "x", "--timeout", "5s") == Done(
        0, "x drained and removed from new\n", ""
    )
    assert change("replica", "remove", "new", made[1]).out == f"{made[1]} removed from new\n"
    assert change("service", "remove", "new") == Done(0, "new removed\n", "")
    assert change("service", "remove", "llama").code == 1
    assert change("replica", "drain", "llama", "a", "--timeout", "soon").code == 2


def test_a_typing_error_in_a_path_is_found(admin: str, home: Path) -> None:
    done = gatewayd_("replica", "add", "llama", f"unix:{home}/typo.sock", "--admin", admin)
    assert (done.code, done.out) == (1, "")
    assert f"there is no socket {home}/typo.sock" in done.err


def test_a_replica_behind_ssh_is_named_by_a_url(admin: str) -> None:
    def add(address: str) -> Done:
        return gatewayd_("replica", "add", "llama", address, "--id", "s", "--admin", admin)

    done = add("ssh://u@127.0.0.1:1?app_port=80")
    assert (done.code, done.out) == (1, "")
    assert "service main/llama: ssh: connect to host 127.0.0.1 port 1: Connection" in done.err


@pytest.mark.parametrize(
    "address",
    ["ssh://h:22?app_port=1", "ssh://u@h", "ssh://u@h?app_port=x", "ssh://u@h:x?app_port=1"],
)
def test_what_is_no_ssh_url(admin: str, address: str) -> None:
    done = gatewayd_("replica", "add", "llama", address, "--admin", admin)
    assert (done.code, done.out) == (2, "")
    assert address in done.err


def test_reload_prints_the_difference_and_applies_it(admin: str, file: Path) -> None:
    text = file.read_text()
    try:
        assert gatewayd_("reload", "--admin", admin) == Done(0, "nothing changed\n", "")
        file.write_text(text + "    model: tiny\n")
        line = "services.llama.model: null -> tiny\n"
        assert gatewayd_("reload", "--dry-run", "--admin", admin) == Done(0, line, "")
        assert gatewayd_("reload", "--admin", admin) == Done(0, line, "")
        file.write_text(text.replace("workers: 1", "workers: 9"))
        refused = gatewayd_("reload", "--admin", admin)
        assert (refused.code, refused.out) == (2, "")
        assert refused.err == "gatewayd: workers: 1 -> 9; restart gatewayd to change it\n"
        file.write_text("nothing: good\n")
        for options in ((), ("--dry-run",)):
            broken = gatewayd_("reload", *options, "--admin", admin)
            assert (broken.code, broken.out) == (2, "")
            assert f"{file}:1: nothing: unknown key" in broken.err
        assert "tiny" in gatewayd_("status", "--admin", admin).out
    finally:
        file.write_text(text)


def test_nobody_reads_on(admin: str) -> None:
    popen = subprocess.Popen(
        (sys.executable, "-m", "gatewayd", "status", "--json", "--admin", admin),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert popen.stdout is not None
    popen.stdout.close()
    assert popen.stderr is not None
    assert b"Traceback" not in popen.stderr.read()
    popen.stderr.close()
    assert popen.wait(30) in (0, 1)


def test_the_data_plane_does_without_the_needs_of_control() -> None:
    """A worker's memory and start are every user's."""
    code = (
        "import sys, gatewayd.cli, gatewayd.proxy.worker, gatewayd.bridge.main; "
        "heavy = {'pydantic', 'yaml', 'prometheus_client'} & set(sys.modules); "
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_gateway_that_cannot_start_leaves_no_worker(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        path = home / "taken.yaml"
        path.write_text(
            f"domain: x.example\nstate_dir: {home}/other\nlisten:\n"
            f"  http: 127.0.0.1:{taken.getsockname()[1]}\n  admin: unix:{home}/other.sock\n"
        )
        done = gatewayd_("run", "-c", str(path), MARK=str(home))
    assert done.code == 1
    assert "address already in use" in done.err
    deadline = time.monotonic() + 5
    while _marked(home):
        assert time.monotonic() < deadline


def _marked(home: Path) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if f"MARK={home}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(entry.name)
            except OSError:
                pass
    return found
