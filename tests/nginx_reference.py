"""The real nginx as the reference for rate limits, and how its decisions are judged.

`nginx(...)` runs one with a configuration of its own; `arrive(...)` sends requests at given
moments to any HTTP server on TCP and notes when they can have arrived; `Explanations` says
whether our arithmetic explains the answers.
"""

from __future__ import annotations

import asyncio
import math
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gatewayd.core.ratelimit import take

_CLOCK_MONOTONIC_COARSE = 6  # what nginx reads; it lags by up to a tick of the kernel
TICK_MS = math.ceil(time.clock_getres(_CLOCK_MONOTONIC_COARSE) * 1000)

_CONFIG = """\
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log error;
worker_rlimit_nofile 1024;
events {{ worker_connections 500; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    limit_req_status 429;
    limit_req_log_level info;
{http}
    server {{
        listen 127.0.0.1:{port};
{server}
    }}
}}
"""


@contextmanager
def nginx(directory: Path, *, http: str = "", server: str) -> Iterator[int]:
    """The port of an nginx with these contents of its `http` and `server` blocks.

    It inherits a socket that already listens (as when it is upgraded in place), so the port is
    the system's choice and there is nothing to wait for.
    """
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    assert program is not None, "nginx is not installed"
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        listener.setblocking(False)
        port = int(listener.getsockname()[1])
        config = directory / "nginx.conf"
        config.write_text(_CONFIG.format(directory=directory, http=http, server=server, port=port))
        process = subprocess.Popen(
            [program, "-p", str(directory), "-c", str(config), "-e", str(directory / "error.log")],
            env={"NGINX": f"{listener.fileno()};"},  # needs its master: without one it crashes
            pass_fds=[listener.fileno()],
        )
    try:
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(5)


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request: the server saw it between two moments (monotonic ms), and answered."""

    earliest_ms: int
    latest_ms: int
    status: int
    headers: Mapping[str, str]


async def arrive(
    port: int,
    path: str,
    at_ms: Sequence[int],
    *,
    headers: Iterable[tuple[str, str]] = (),
    host: str = "localhost",
) -> list[Arrival]:
    """Send `GET path` at each moment (ms after now, ascending), one after the other on one
    connection, so that arrivals keep their order."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n".encode()
    began = time.monotonic()
    arrivals = []
    try:
        for moment in at_ms:
            await asyncio.sleep(began + moment / 1000 - time.monotonic())
            earliest_ms = int(time.monotonic() * 1000) - TICK_MS
            writer.write(request)
            status, answered = await asyncio.wait_for(_answer(reader), 5)
            arrivals.append(Arrival(earliest_ms, int(time.monotonic() * 1000), status, answered))
    finally:
        writer.close()
        await writer.wait_closed()
    return arrivals


async def _answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    fields = (line.partition(":") for line in head[1:] if line)
    headers = {name.lower(): value.strip() for name, _, value in fields}
    await reader.readexactly(int(headers.get("content-length", "0")))
    return int(head[0].split()[1]), headers


class Explanations:
    """Every state that a bucket of ours can be in after the arrivals so far.

    Nobody outside knows the exact millisecond of an arrival, so each possible one is followed;
    those that contradict an answer are dropped. No state left: the server decides otherwise
    than we do, whenever the requests arrived.
    """

    def __init__(self, rate: int, burst: int) -> None:
        self._rate, self._burst = rate, burst
        self._states: list[tuple[int, int] | None] = [None]
        self.certain = 0  # answers for which the exact millisecond did not matter

    def explain(self, arrival: Arrival) -> bool:
        """Whether an answer can be ours. 429 is a refusal, anything else a pass."""
        passed = arrival.status != 429
        verdicts = set()
        states: dict[object, tuple[int, int]] = {}
        for state in self._states:
            for now_ms in range(arrival.earliest_ms, arrival.latest_ms + 1):
                if state is None:
                    wait_ms, after = 0, (0, now_ms)
                elif now_ms < state[1]:
                    continue  # on one connection time goes one way
                else:
                    wait_ms, *rest = take(*state, now_ms, self._rate, self._burst)
                    after = (rest[0], rest[1])
                verdicts.add(wait_ms == 0)
                if passed == (wait_ms == 0):
                    states.setdefault(self._future(after), after)
        self.certain += len(verdicts) == 1
        self._states = [*states.values()]
        return bool(states)

    def _future(self, state: tuple[int, int]) -> object:
        """Equal for states that decide alike from here on."""
        excess, last_ms = state
        return state if self._rate % 1000 else excess * 1000 + self._rate * last_ms
