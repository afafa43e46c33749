"""Load on a proxy: wrk for small requests, our own clients for streams, bodies and connections.

Owns: calling them and refusing a result with any failed request in it.
Does not own: what the figures make of it.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.bench import HERE, Bench, Proxy
from benchmarks.processes import BenchError, Process, clean_environment

_MARKER = {"bench_marker": 1}
_PROMPT = "How many tokens does a gateway move in its life, and does it know any of them? " * 2


def chat(**more: object) -> bytes:
    """A chat completion; the marker is not part of the API, so a router drops it."""
    messages = [{"role": "user", "content": _PROMPT}]
    return json.dumps({"model": "bench", "messages": messages, **_MARKER, **more}).encode()


def unmarked(body: bytes) -> bytes:
    return json.dumps({k: v for k, v in json.loads(body).items() if k not in _MARKER}).encode()


CHAT = chat(max_tokens=40)
CHAT_STREAM = chat(stream=True, max_tokens=1_000_000_000)
CHAT_ONE_TOKEN = chat(stream=True, max_tokens=1)


@dataclass(frozen=True)
class Wrk:
    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float

    @property
    def rps(self) -> float:
        return self.requests / self.seconds


def wrk(
    bench: Bench,
    proxy: Proxy,
    path: str,
    *,
    method: str = "GET",
    body: bytes = b"",
    seconds: int,
    **headers: str,
) -> Wrk:
    settings = bench.settings
    content = tempfile.NamedTemporaryFile(dir=bench.folder)  # noqa: SIM115
    with content:
        content.write(body)
        content.flush()
        sent = bench.headers(**{k.replace("_", "-"): v for k, v in headers.items()})
        argv = ["taskset", "-c", str(settings.load_core), settings.wrk, "-t1"]
        argv += [f"-c{settings.connections}", f"-d{seconds}s", "--timeout", "10s"]
        argv += ["-s", str(HERE / "load.lua"), f"http://127.0.0.1:{proxy.port}", "--"]
        argv += [method, path, content.name if body else ""]
        argv += [f"{name}={value}" for name, value in sent.items()]
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=seconds + 20, env=clean_environment(),
            check=False,
        )  # fmt: skip
    if done.returncode != 0:
        raise BenchError(f"wrk: {done.stderr.strip() or done.stdout.strip()}")
    said = json.loads(done.stdout.strip().splitlines()[-1])
    wrong = {k: said[k] for k in ("connect", "read", "write", "status", "timeout") if said[k]}
    if wrong or not said["requests"]:
        raise BenchError(f"{proxy.name}: {wrong or 'no answer'} of {said['requests']} requests")
    return Wrk(said["requests"], said["seconds"], said["p50_ms"], said["p99_ms"])


@contextmanager
def client(
    bench: Bench,
    script: str,
    where: Proxy | Path,
    path: str,
    *options: str,
    body: bytes = b"",
    tls: bool = False,
) -> Iterator[Process]:
    """One of our clients, connected to a proxy or straight to the replica's socket, told by its
    first line what to send; it answers when it is ready."""
    headers = bench.headers(**({"Content-Type": "application/json"} if body else {}))
    if isinstance(where, Path):
        target = str(where)
    else:
        target = f"127.0.0.1:{where.tls_port if tls else where.port}"
    request = {
        "target": target,
        "method": "POST" if body else "GET",
        "path": path,
        "headers": headers,
        "body": body.decode(),
        "tls": tls,
    }
    with bench.python(script, *options) as process:
        process.say(json.dumps(request))
        process.hear(60.0)
        yield process
