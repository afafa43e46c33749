"""Mistakes of operators and callers: a clear message, exit 2 or 1 or a 4xx, nothing half-done."""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from whole_gateway import Gateway, gatewayd
from whole_replicas import Replica

pytestmark = pytest.mark.asyncio(loop_scope="module")

# A line of the file, and what is said about it (its place is found by the test).
MISTAKES = [
    ("type: gatewayy", "type: expected gateway, found `gatewayy`; did you mean `gateway`?"),
    ("name: on", 'write "on"'),
    ("domian: example.com", "domian: unknown key; did you mean `domain`?"),
    ("listen: {http: '127.0.0.1:99999', admin: nowhere}", "listen.http: expected a port"),
    ("workers: 0", "workers: expected auto or a whole number"),
    ("drain_timeout: 5 minutes", "did you mean `5m`?"),
    ("trusted_proxies: [10.0.0.0/33]", "trusted_proxies[0]: expected an address or a CIDR"),
    ("log: {level: verbose, acess: off}", "log.acess: unknown key; did you mean `access`?"),
    ("certificate: {type: file, key: k}", "certificate.cert: this key is required"),
    ("auth:", None),
    ("  type: tokens", None),
    ("  tokens:", None),
    ("    - {name: a, token: 'file:/nonexistent/token'}", "cannot read /nonexistent/token"),
    ("    - {name: b, token: '${NO_SUCH_VARIABLE}'}", "NO_SUCH_VARIABLE is not set"),
    ("    - {name: c, token: 'file:/'}", "auth.tokens[2].token: cannot read /: Is a directory"),
    ("services:", None),
    ("  - name: one", None),
    ("    domain: llama.test", None),
    ("    rate_limits: [{prefix: /, rsp: 4, burst: 1}]", "rsp: unknown key; did you mean `rps`?"),
    ("    client_max_body_size: 64 gigs", "client_max_body_size: expected a size"),
    ("    timeouts: {first_byte: -1s}", "timeouts.first_byte: expected a duration"),
    ("    balance: fastest", "expected least_requests, round_robin or random, found `fastest`"),
    ("  - name: two", None),
    ("    domain: llama.test", "services[1].domain: the domain `llama.test` is also that of"),
    ("    router: {type: sglang, policy: cache_awere}", "did you mean 'cache_aware'?"),
    ("    replicas:", None),
    (f"      - unix:/{'x' * 120}.sock", "socket path is 126 bytes long, at most 107 fit"),
    ("      - {id: a, socket: relative.sock}", "replicas[1].socket: expected the absolute path"),
    ("      - {id: b, url: 'ftp://x'}", "replicas[2].url: expected http://host:port"),
    ("      - {id: c, ssh: {host: h, app_port: 8000}}", "replicas[3].ssh.host: expected user@host"),
    ("      - {id: d, socket: /run/d.sock}", None),
    ("      - {id: e, socket: /run/d.sock}", "unix:/run/d.sock is also services[1].replicas[4]"),
    ("  - name: two", "services[2].name: `two` is also the name of services[1]"),
    ("    domain: two.test", None),
    ("    router: {type: sglang, args: {cache-treshold: 1}}", "did you mean 'cache-threshold'?"),
    ("  - name: three", None),
    ("    domain: three.test", None),
    ("    router: sglnag", "did you mean 'sglang'?"),
    ("    domain: again.test", "services[3].domain: this key stands on line 37 already"),
    ("  - name: Llama_1", "services[4].name: expected a DNS label"),
]


@pytest.mark.parametrize("command", ["check", "run"])
async def test_every_mistake_of_a_file_is_told_in_one_run(home: Path, command: str) -> None:
    file = home / "gateway.yaml"
    file.write_text("\n".join(line for line, _ in MISTAKES) + "\n")
    code, out, err = await gatewayd(command, "-c", str(file))
    assert code == 2
    assert out == ""
    told = err.splitlines()
    for number, (line, message) in enumerate(MISTAKES, 1):
        about = [text for text in told if text.startswith(f"{file}:{number}: ")]
        if message is None:
            assert not about, (line, about)
        else:
            assert any(message in text for text in about), (line, about)
    assert all(text.startswith(f"{file}:") for text in told)
    assert os.listdir(home) == ["gateway.yaml"]  # nothing was begun


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read: No such file or directory"),
        ("services: [\n", "gateway.yaml:2: "),
        ("- a\n- b\n", "expected"),
        ("a: b\x00", "gateway.yaml"),
        ("domain: a\ndomain: b\n", "domain: this key stands on line 1 already"),
        ("listen: {admin: '127.0.0.1:0'}\nstate_dir: /proc/nowhere/state\n", "state_dir"),
    ],
    ids=["absent", "yaml", "list", "nul", "twice", "state_dir"],
)
async def test_files_that_cannot_be(home: Path, text: str | None, message: str) -> None:
    file = home / "gateway.yaml"
    if text is not None:
        file.write_text(text)
    code, _, err = await gatewayd("run", "-c", str(file))
    assert code == (1 if message == "state_dir" else 2)
    assert message in err
    assert "Traceback" not in err


async def test_a_router_that_is_not_installed(home: Path) -> None:
    """Where it is not, Python does not find it: here a hook sees to that."""
    hook = home / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(
        "from importlib.machinery import PathFinder\n"
        "find = PathFinder.find_spec\n"
        "PathFinder.find_spec = classmethod(lambda cls, name, path=None, target=None:\n"
        "    None if name.partition('.')[0] == 'sglang_router' else find(name, path, target))\n"
    )
    file = home / "gateway.yaml"
    file.write_text("domain: test\nrouter: sglang\n")
    code, _, err = await gatewayd("run", "-c", str(file), env={"PYTHONPATH": str(hook)})
    assert code == 2
    assert f"{file}:2: router" in err
    assert "not installed" in err
    assert "pip install sglang-router" in err


@pytest.mark.parametrize("which", ["http", "admin", "metrics"])
async def test_ports_in_use(home: Path, which: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        gateway = Gateway(home)
        gateway.config["listen"][which] = address
        gateway.write_file()
        code, _, err = await gatewayd("run", "-c", str(gateway.file))
    assert code == 1
    assert address in err
    assert "already in use" in err
    assert "Traceback" not in err
    assert not gateway.admin_path.exists()


@pytest.mark.parametrize(
    "argv",
    [
        ("run",),
        ("run", "-c"),
        ("serve",),
        (),
        ("replica", "add", "llama"),
        ("replica", "drain", "llama", "a", "--timeout", "soon"),
    ],
)
async def test_usage(argv: tuple[str, ...]) -> None:
    code, _, err = await gatewayd(*argv)
    assert code == 2
    assert err
    assert "Traceback" not in err


async def test_a_gateway_that_is_not_there(home: Path) -> None:
    for argv in (("status",), ("reload",), ("service", "remove", "a")):
        code, out, err = await gatewayd(*argv, "--admin", f"unix:{home}/absent.sock")
        assert (code, out) == (1, "")
        assert "is it running?" in err


# --- the admin address


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def gateway(shared_home: Path) -> AsyncIterator[Gateway]:
    replica = Replica("r0", shared_home / "r0.sock")
    services = [
        {"name": "llama", "model": "m", "replicas": [{"id": "r0", "socket": str(replica.path)}]}
    ]
    async with replica, Gateway(shared_home, services, workers=1) as gateway:
        (shared_home / "plain").write_text("no socket")
        yield gateway


SERVICES, REPLICAS = "services/register", "services/llama/replicas/register"

BODIES: list[tuple[str, Any, int, str]] = [
    (SERVICES, b"{not json", 422, "JSON decode error"),
    (SERVICES, b"\xff\xfe", 422, "JSON decode error"),
    (SERVICES, b"[" * 100_000, 422, "JSON decode error"),
    (SERVICES, [], 422, "dict"),
    (SERVICES, {}, 422, "run_name"),
    (SERVICES, {"run_name": 7}, 422, "run_name"),
    (SERVICES, {"run_name": "a b"}, 422, "run_name"),
    (SERVICES, {"run_name": "x", "domain": "no domain"}, 422, "domain"),
    (SERVICES, {"run_name": "x", "rate_limits": {}}, 422, "rate_limits"),
    (SERVICES, {"run_name": "x", "client_max_body_size": "much"}, 422, "client_max_body_size"),
    (SERVICES, {"run_name": "x", "timeouts": {"idle": -1}}, 422, "idle"),
    (SERVICES, {"run_name": "x", "https": True}, 400, "serves no HTTPS"),
    (SERVICES, {"run_name": "x", "router": "sglnag"}, 400, "did you mean 'sglang'?"),
    (
        SERVICES,
        {"run_name": "x", "router": {"type": "sglang", "policy": "best"}},
        400,
        "no policy 'best'",
    ),
    (SERVICES, {"run_name": "llama"}, 400, "Service main/llama is already registered"),
    (SERVICES, {"run_name": "x", "domain": "llama.test"}, 400, "already taken"),
    (REPLICAS, {}, 400, "exactly one of"),
    (REPLICAS, {"socket": "/a", "url": "http://b:1"}, 400, "exactly one"),
    (REPLICAS, {"socket": 5}, 422, "socket"),
    (REPLICAS, {"socket": "relative.sock"}, 400, "absolute path"),
    (REPLICAS, {"socket": f"/{'x' * 120}.sock"}, 400, "at most 107 fit"),
    (REPLICAS, {"socket": "/nonexistent/r.sock"}, 400, "there is no socket"),
    (REPLICAS, {"socket": "{home}/plain"}, 400, "is not a socket"),
    (REPLICAS, {"url": "ftp://x"}, 400, "http://host:port"),
    (REPLICAS, {"id": "a b", "url": "http://127.0.0.1:1"}, 422, "id"),
    (REPLICAS, {"id": "r0", "url": "http://127.0.0.1:1"}, 400, "Replica r0 already exists"),
    (REPLICAS, {"ssh_host": "h"}, 422, "ssh_host"),
    ("services/absent/replicas/register", {"url": "http://127.0.0.1:1"}, 400, "does not exist"),
    ("services/llama/replicas/absent/unregister", {}, 400, "does not exist"),
    ("services/llama/replicas/absent/drain", {}, 400, "does not exist"),
    ("services/llama/replicas/r0/drain", {"timeout": "long"}, 422, "timeout"),
    ("services/llama/replicas/r0/drain", {"timeout": -1}, 422, "timeout"),
    ("services/llama/unregister", {}, 400, "belongs to the configuration file"),
    ("services/absent/unregister", {}, 400, "is not registered"),
]


async def test_bodies_that_cannot_be(gateway: Gateway) -> None:
    before = await seen(gateway)
    connector = aiohttp.UnixConnector(str(gateway.admin_path))
    async with aiohttp.ClientSession("http://localhost", connector=connector) as session:
        for path, body, status, message in BODIES:
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            raw = raw.replace(b"{home}", str(gateway.home).encode())
            async with session.post(
                f"/api/registry/main/{path}",
                data=raw,
                headers={"Content-Type": "application/json"},
            ) as response:
                text = await response.text()
            case = (path, raw[:80], response.status, text[:300])
            assert response.status == status, case
            assert message in json.dumps(json.loads(text)["detail"]), case
        # Nothing but JSON is a body, whatever it holds.
        async with session.post(f"/api/registry/main/{SERVICES}", data={"run_name": "x"}) as form:
            assert form.status == 415
        async with session.post(
            f"/api/registry/main/{SERVICES}",
            data=io.BytesIO(b'{"run_name": "' + b"x" * 2_000_000),
            headers={"Content-Type": "application/json"},
        ) as large:
            assert large.status == 413
    assert await seen(gateway) == before


async def seen(gateway: Gateway) -> object:
    """What a change would have changed."""
    status = await gateway.status()
    return status["services"], status["snapshot"]


async def test_the_same_service_twice_at_once(gateway: Gateway) -> None:
    """One of them is first; the other is told, and the service is there once."""
    answers = await asyncio.gather(
        *(
            gateway.call("POST", f"/api/registry/main/{SERVICES}", {"run_name": "twin"})
            for _ in range(8)
        )
    )
    assert sorted(status for status, _ in answers) == [200] + [400] * 7
    names = [s["name"] for s in (await gateway.status())["services"]]
    assert names.count("twin") == 1
    await gateway.change("twin/unregister")


async def test_the_commands_say_what_was_refused(gateway: Gateway) -> None:
    admin = ("--admin", f"unix:{gateway.admin_path}")
    for argv, message in (
        (("service", "add", "llama"), "already registered"),
        (("service", "remove", "llama"), "belongs to the configuration file"),
        (("replica", "add", "llama", "/nonexistent.sock"), "there is no socket"),
        (("replica", "drain", "llama", "absent"), "does not exist"),
    ):
        code, out, err = await gatewayd(*argv, *admin)
        assert (code, out) == (1, ""), argv
        assert message in err, err


async def test_the_commands_change_the_running_gateway(gateway: Gateway) -> None:
    admin = ("--admin", f"unix:{gateway.admin_path}")
    socket_path = f"unix:{gateway.home}/r0.sock"
    steps = [
        (("service", "add", "typed", "--model", "m"), "typed added\n"),
        (("replica", "add", "typed", socket_path, "--id", "x"), "added to typed\n"),
        (("replica", "add", "typed", socket_path, "--id", "y"), "added to typed\n"),
        (("replica", "drain", "typed", "x", "--timeout", "2s"), "x drained and removed"),
        (("replica", "remove", "typed", "y"), "y removed from typed\n"),
        (("service", "remove", "typed"), "typed removed\n"),
    ]
    for argv, message in steps:
        code, out, err = await gatewayd(*argv, *admin)
        assert (code, err) == (0, ""), (argv, err)
        assert message in out
        if argv[1] == "add" and argv[0] == "replica":
            async with aiohttp.ClientSession() as session:
                url = f"{gateway.url}/who"
                async with session.get(url, headers={"Host": "typed.test"}) as response:
                    assert await response.text() == "r0"
