"""`gatewayd demo`: a whole gateway on this machine, shown working before it says what to try.

Owns: the demo's configuration and folder, its two replica processes, the order of things.
Does not own: the gateway itself, which is handed in; the proof and the words (demo.show).
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from gatewayd.config.model import Config, Listen, ListenAddress, Ports
from gatewayd.core.model import (
    Address,
    Limits,
    Log,
    Replica,
    RouterSpec,
    Service,
    TcpAddress,
    UnixAddress,
)
from gatewayd.demo.show import (
    EVERYWHERE,
    MODEL,
    SHOWN_WITHIN_S,
    DemoFailedError,
    Say,
    show,
    what_to_try,
)
from gatewayd.net.process import Command, SupervisedProcess

log = logging.getLogger(__name__)

DEFAULT_LISTEN: Final = TcpAddress("127.0.0.1", 8080)
# Called once with the public addresses that are really bound.
Ready = Callable[[tuple[Address, ...]], None]
# Serves a configuration until it is stopped by a signal or cancelled; gives the exit code.
Serve = Callable[[Config, Ready], Awaitable[int]]


def write(text: str) -> None:
    print(text, end="", flush=True)


async def run_demo(
    serve: Serve,
    *,
    listen: TcpAddress = DEFAULT_LISTEN,
    once: bool = False,
    say: Say = write,
) -> int:
    """Serve the demo in the foreground; with `once` stop after the shown answer. Exit code."""
    try:
        _check_free(listen)
        with tempfile.TemporaryDirectory(prefix="gatewayd-demo-") as folder:
            return await _run(serve, demo_config(Path(folder), listen, once=once), once, say)
    except DemoFailedError as error:
        print(f"gatewayd demo: {error}", file=sys.stderr)
        return 1


def demo_config(folder: Path, listen: TcpAddress, *, once: bool = False) -> Config:
    """One service behind a router, two replicas on Unix sockets, all state below `folder`."""
    addresses = {name: UnixAddress(str(folder / f"{name}.sock")) for name in ("a", "b")}
    hosts = ["demo.localhost", "localhost", "127.0.0.1"]
    if listen.host not in (*hosts, *EVERYWHERE):
        hosts.append(listen.host)
    service = Service(
        project="main",
        name="demo",
        domains=tuple(hosts),
        model=MODEL,
        router=RouterSpec(type="sglang"),
        replicas=tuple(Replica(name, address) for name, address in addresses.items()),
    )
    return Config(
        source="",
        name="demo",
        project="main",
        domain="localhost",
        router=service.router,
        listen=Listen(http=(ListenAddress(listen),), admin=UnixAddress(str(folder / "admin.sock"))),
        workers=2,
        state_dir=str(folder / "state"),
        run_dir=str(folder / "run"),
        trusted_proxies=(),
        log=Log(level="warning", access="off" if once else "stdout"),
        auth=None,
        limits=Limits(),
        drain_timeout=5.0,
        ports=Ports(),
        services=(service,),
    )


def _check_free(listen: TcpAddress) -> None:
    """Before anything starts, and without SO_REUSEPORT: another gateway's port is not free."""
    try:
        with socket.create_server(
            (listen.host, listen.port),
            family=socket.AF_INET6 if ":" in listen.host else socket.AF_INET,
        ):
            pass
    except OSError as error:
        named = isinstance(error, socket.gaierror)
        why = error.strerror if named else os.strerror(error.errno or 0)
        raise DemoFailedError(
            f"cannot listen on {listen}: {why}; "
            f"choose another address, for example: gatewayd demo --listen 127.0.0.1:8081"
        ) from None


async def _run(serve: Serve, config: Config, once: bool, say: Say) -> int:
    loop = asyncio.get_running_loop()
    bound: asyncio.Future[tuple[Address, ...]] = loop.create_future()

    def ready(addresses: tuple[Address, ...]) -> None:
        if not bound.done():
            bound.set_result(addresses)

    async with AsyncExitStack() as owned:
        replicas = [_start_replica(replica) for replica in config.services[0].replicas]
        for process in replicas:
            owned.push_async_callback(process.aclose)
        await _until_up(replicas)  # first, or the gateway would report them as unreachable
        gateway = loop.create_task(_serve(serve, config, ready), name="demo: gateway")
        owned.push_async_callback(_end, gateway)
        shown = loop.create_task(show(config, bound, say), name="demo: show")
        owned.push_async_callback(_end, shown)
        await asyncio.wait((gateway, shown), return_when=asyncio.FIRST_COMPLETED)
        if shown.done():
            base_url = shown.result()
            if once:
                return 0
            say(what_to_try(base_url, str(config.listen.admin)))
        return await gateway


async def _until_up(replicas: list[SupervisedProcess]) -> None:
    for replica in replicas:
        if not await replica.wait_ready(SHOWN_WITHIN_S):
            raise DemoFailedError("; ".join((f"{replica.name} does not start", *replica.words)))


async def _serve(serve: Serve, config: Config, ready: Ready) -> int:
    return await serve(config, ready)


async def _end(task: asyncio.Task[int] | asyncio.Task[str]) -> None:
    """Cancel and wait; a failure to stop is told, one that was there before is told already."""
    if not task.cancel():
        return
    await asyncio.wait((task,))
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("%s did not stop cleanly: %r", task.get_name(), error)


def _start_replica(replica: Replica) -> SupervisedProcess:
    up = asyncio.Event()
    assert isinstance(replica.address, UnixAddress)
    argv = (
        *(sys.executable, "-m", "gatewayd.demo.replica"),
        *("--socket", replica.address.path, "--name", replica.id, "--model", MODEL),
    )

    async def ready(_child: object) -> None:
        await up.wait()

    process = SupervisedProcess(
        f"demo replica {replica.id}",
        lambda _start: Command(argv, os.environ),
        ready=ready,
        on_line=lambda line: up.set() if " on unix:" in line else None,
        on_exit=lambda _exit: up.clear(),
    )
    process.start()
    return process
