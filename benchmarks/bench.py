"""The bench: cores, a scratch folder, the replica, two proxies side by side, rounds in turn.

Owns: what every figure needs, and that nothing is left behind. Does not own: how a proxy is
configured (nginx_proxy, gateway_proxy), how load is made (load), what is measured (figures).
"""

from __future__ import annotations

import errno
import http.client
import json
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.processes import (
    SHIELD,
    BenchError,
    Cost,
    Meter,
    Process,
    memory_kib,
    running,
)

HERE = Path(__file__).resolve().parent
HOST = "bench.test"


@dataclass(frozen=True)
class Settings:
    rounds: int
    seconds: int  # of one measurement
    streams: int  # open streams of the event figures
    open_streams: int  # of the memory figure
    idle_connections: int
    connections: int  # of wrk
    proxy_core: int
    load_core: int
    subject: Literal["gatewayd", "nginx"]
    gatewayd: tuple[str, ...]  # how it is called
    nginx: str
    wrk: str


@dataclass(frozen=True)
class Shape:
    """What a proxy is asked to be for a figure; both proxies get the same one."""

    sockets: tuple[Path, ...]
    large: bool = False  # bodies of 64 MiB: bigger buffers, uploads not held back
    router: str = ""  # behind a router of its own, in this mode
    workers: int = 1
    pinned: bool = True
    plain_log: bool = True  # an access line per request
    tls: bool = False  # on a second port as well


class Proxy(ABC):
    """A proxy under test, in a folder of its own. Roles that carry no traffic are in `IDLE`."""

    IDLE: frozenset[str] = frozenset()
    process: Process | None = None  # the root of its family

    def __init__(self, bench: Bench, name: str, shape: Shape, folder: Path) -> None:
        self.bench = bench
        self.name = name
        self.shape = shape
        self.folder = folder
        self.port = free_port()
        self.tls_port = free_port() if shape.tls else 0

    @abstractmethod
    def start(self) -> None:
        """Start and return at once; `wait_ready` waits."""

    @abstractmethod
    def wait_ready(self) -> None: ...

    @abstractmethod
    def roles(self) -> dict[str, list[int]]:
        """The processes by role; BenchError when one that must be there is not."""

    @abstractmethod
    def stop(self) -> None: ...

    @property
    def cores(self) -> set[int]:
        settings = self.bench.settings
        both = {settings.proxy_core, settings.load_core}
        return {settings.proxy_core} if self.shape.pinned else both

    def meter(self) -> Meter:
        return Meter(self.roles())

    def carriers_kib(self) -> int:
        """Resident memory of the processes that hold connections."""
        roles = self.roles()
        return sum(memory_kib(pid) for role in roles if role not in self.IDLE
                   for pid in roles[role])  # fmt: skip


class Bench:
    """Everything started for one run. Use as a context manager: leaving it stops it all."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.token = secrets.token_hex(16)
        self._stack = ExitStack()
        # Short: a path of a Unix socket has 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="gwbench-"))
        self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self._serial = 0

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *exc: object) -> None:
        with SHIELD:
            for process in reversed(running[:]):  # what an interrupt left between two blocks
                process.stop()
            self._stack.close()

    def scratch(self, name: str) -> Path:
        self._serial += 1
        folder = self.folder / f"{self._serial}-{name}"
        folder.mkdir()
        return folder

    def certificate(self) -> tuple[Path, Path]:
        """(certificate, key): ECDSA P-256, self-signed; both proxies have the same."""
        cert, key = self.folder / "tls.pem", self.folder / "tls.key"
        if not cert.exists():
            argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
                    "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", f"/CN={HOST}",
                    "-addext", f"subjectAltName=DNS:{HOST}", "-keyout", str(key),
                    "-out", str(cert)]  # fmt: skip
            done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
            if done.returncode != 0:
                raise BenchError(f"openssl: {done.stderr.strip()}")
        return cert, key

    def headers(self, **more: str) -> dict[str, str]:
        return {"Host": HOST, "Authorization": f"Bearer {self.token}", **more}

    @contextmanager
    def python(self, script: str, *args: str, name: str = "") -> Iterator[Process]:
        """One of our own scripts on the load core, spoken to in JSON lines."""
        log = self.scratch(name or script) / "stderr.log"
        process = Process(
            name or script,
            [sys.executable, "-m", f"benchmarks.{script}", *args],
            cores={self.settings.load_core},
            log=log,
            pipes=True,
            env={"PYTHONPATH": str(HERE.parent)},
        )
        try:
            yield process
        finally:
            process.stop()
            shutil.rmtree(log.parent, ignore_errors=True)

    @contextmanager
    def replica(self, rate: float = 50.0) -> Iterator[Path]:
        """A replica for as long as the block runs; its socket."""
        path = self.scratch("replica") / "r.sock"
        with self.python("replica", "--socket", str(path), "--rate", str(rate)) as process:
            process.hear(10.0)
            yield path
            process.require_alive()

    @contextmanager
    def proxies(self, shape: Shape) -> Iterator[list[Proxy]]:
        """Subject and peer, started and ready, both idle until loaded."""
        with ExitStack() as stack:
            yield [stack.enter_context(self.running(p)) for p in self.build(shape)]

    @contextmanager
    def running(self, proxy: Proxy) -> Iterator[Proxy]:
        try:
            proxy.start()
            proxy.wait_ready()
            yield proxy
        finally:
            proxy.stop()
            shutil.rmtree(proxy.folder, ignore_errors=True)  # access logs of a whole figure

    def build(self, shape: Shape) -> list[Proxy]:
        from benchmarks import chain_proxy, gateway_proxy, nginx_proxy
        from benchmarks.report import PEER, SUBJECT

        peer = chain_proxy.OldChain if shape.router else nginx_proxy.NginxProxy
        subject = gateway_proxy.GatewayProxy if self.settings.subject == "gatewayd" else peer
        kinds: list[tuple[type[Proxy], str]] = [(subject, SUBJECT), (peer, PEER)]
        return [kind(self, name, shape, self.scratch(name)) for kind, name in kinds]

    def in_turn(self, proxies: Sequence[Proxy], once: Callable[[Proxy, bool], None]) -> None:
        """A B A B ...; before that each once to warm up, told by the second argument."""
        for proxy in proxies:
            once(proxy, True)
        for _ in range(self.settings.rounds):
            for proxy in proxies:
                once(proxy, False)


def used(cost: Cost, per: float, what: str) -> float:
    """CPU microseconds per unit."""
    if per <= 0:
        raise BenchError(f"no {what} in the window")
    return cost.cpu_s / per * 1e6


# --- small HTTP, for probes and not for load -----------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def ask(
    where: int | Path,
    method: str,
    path: str,
    *,
    headers: dict[str, str] | None = None,
    body: bytes | None = None,
    timeout: float = 5.0,
) -> tuple[int, bytes]:
    """One request on a fresh connection to a loopback port or a socket: status and body."""
    connection: http.client.HTTPConnection
    if isinstance(where, Path):
        connection = _UnixConnection(str(where), timeout)
    else:
        connection = http.client.HTTPConnection("127.0.0.1", where, timeout=timeout)
    try:
        connection.request(method, path, body=body, headers=headers or {})
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException) as error:
        raise BenchError(f"{method} {path}: {error!r}") from error
    finally:
        connection.close()


def ask_json(where: int | Path, path: str) -> dict[str, object]:
    status, body = ask(where, "GET", path)
    if status != 200:
        raise BenchError(f"GET {path}: {status}")
    content = json.loads(body)
    assert isinstance(content, dict)
    return content


def until(what: str, process: Process, done: Callable[[], bool], timeout: float) -> None:
    """Poll `done` every 10 ms; refused connections mean not yet, a death means never."""
    deadline = time.monotonic() + timeout
    last = ""
    while True:
        process.require_alive()
        try:
            if done():
                return
        except BenchError as error:
            last = str(error)
        if time.monotonic() > deadline:
            raise BenchError(f"{what} not within {timeout:.0f} s: {last} {process.last_words()}")
        time.sleep(0.01)


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        code = probe.connect_ex(("127.0.0.1", port))
    if code not in (0, errno.ECONNREFUSED):
        raise BenchError(f"connect to {port}: {errno.errorcode.get(code, code)}")
    return code == 0
