"""A worker process: adopts its slot's sockets, applies snapshots, acknowledges, reports, drains.

Owns: the process. Does not own: requests (handler), spawning and replacing workers (control).

When control is gone a worker serves on with its last snapshot; SIGTERM drains it then too.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys

from gatewayd.core.messages import (
    Ack,
    Configure,
    Drain,
    Message,
    Publish,
    Ready,
    ReopenLogs,
    Report,
)
from gatewayd.core.snapshot import Snapshot
from gatewayd.net.buckets import SharedStore
from gatewayd.net.channel import Channel, ChannelClosed
from gatewayd.net.loads import LoadTable
from gatewayd.proxy.accesslog import AccessLog
from gatewayd.proxy.handler import Edge
from gatewayd.proxy.plane import Plane
from gatewayd.proxy.server import EdgeServer

_log = logging.getLogger("gatewayd.worker")
_REPORT_S = 1.0
_BACKLOG = 1024
_ORPHAN_DRAIN_S = 30.0  # after SIGTERM to a worker whose control is gone


class Worker:
    """One process's life, from its first frame to its exit."""

    def __init__(self, channel_fd: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._done = self._loop.create_future()
        self._channel = Channel(
            socket.socket(fileno=channel_fd), self._on_message, self._on_channel_closed
        )
        self._configure: Configure | None = None
        self._plane: Plane | None = None
        self._edge: Edge | None = None
        self._log: AccessLog | None = None
        self._listeners: list[asyncio.Server] = []
        self._sockets: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        self._loop.add_signal_handler(signal.SIGTERM, self._on_sigterm)
        self._loop.add_signal_handler(signal.SIGINT, lambda: None)  # control decides
        self._loop.add_signal_handler(signal.SIGHUP, lambda: None)
        self._loop.add_signal_handler(signal.SIGUSR1, self._reopen_logs)
        code: int = await self._done
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._edge is not None and self._edge.authority is not None:
            await self._edge.authority.aclose()
        if self._plane is not None:
            await self._plane.aclose()
        if self._log is not None:
            self._log.close()
        self._channel.close()
        return code

    def _spawn(self, work: asyncio._CoroutineLike[None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a task of the worker failed", exc_info=error)
            self._finish(1)

    def _finish(self, code: int) -> None:
        if not self._done.done():
            self._done.set_result(code)

    # --- what control says

    def _on_message(self, message: Message, fds: list[int]) -> None:
        if isinstance(message, Configure):
            self._adopt(message, fds)
        elif isinstance(message, Publish):
            self._publish(message)
        elif isinstance(message, Drain):
            self._spawn(self._drain(message.timeout))
        elif isinstance(message, ReopenLogs):
            self._reopen_logs()

    def _adopt(self, configure: Configure, fds: list[int]) -> None:
        self._configure = configure
        loads = LoadTable.attach(fds[0], configure.slots, configure.slot)
        loads.clear_row(configure.slot)
        buckets = SharedStore.attach(fds[1])
        self._sockets = [socket.socket(fileno=fd) for fd in fds[2:]]
        self._plane = Plane(self._loop, loads)
        self._plane.body_idle_timeout = configure.limits.body_idle_timeout
        self._log = AccessLog(configure.log)
        self._edge = Edge(self._plane, configure.limits, buckets, self._log)

    def _publish(self, message: Publish) -> None:
        assert isinstance(message.snapshot, Snapshot)
        assert self._edge is not None
        self._edge.apply(message.snapshot)
        version = message.snapshot.version
        if self._listeners or self._edge.draining:
            self._send(Ack(version))
        else:
            # The first snapshot: before it there was nothing to serve, so nobody was accepted.
            self._spawn(self._open(version))

    async def _open(self, version: int) -> None:
        assert self._edge is not None
        assert self._plane is not None
        server = EdgeServer(self._edge, self._loop)
        self._plane.servers.append(server)
        for sock in self._sockets:
            self._listeners.append(await _listen(self._loop, server, sock))
        self._plane.start()
        gc.collect()
        gc.freeze()  # what lives now lives on: a full collection of it would cost milliseconds
        gc.set_threshold(50_000, 20, 100)
        self._send(Ready(os.getpid()))
        self._send(Ack(version))
        self._spawn(self._report())

    def _send(self, message: Message) -> None:
        try:
            self._channel.send(message)
        except ChannelClosed:
            pass  # serving on without control

    async def _report(self) -> None:
        assert self._configure is not None
        assert self._edge is not None
        assert self._plane is not None
        while not self._channel.closed:
            unreachable, self._plane.unreachable = self._plane.unreachable, set()
            self._send(
                Report(
                    slot=self._configure.slot,
                    incarnation=self._configure.incarnation,
                    totals=self._edge.meters.take_changed(),
                    connections=sum(len(s.connections) for s in self._plane.servers),
                    unreachable=tuple(sorted(unreachable)),
                )
            )
            await asyncio.sleep(_REPORT_S)

    def _on_channel_closed(self) -> None:
        if not self._listeners:
            self._finish(1)  # control died before there was anything to serve
        elif self._edge is not None and not self._edge.draining:
            _log.warning("control is gone; serving on with the last snapshot until SIGTERM")

    # --- endings

    def _on_sigterm(self) -> None:
        if self._channel.closed:
            self._spawn(self._drain(_ORPHAN_DRAIN_S))

    async def _drain(self, timeout_s: float) -> None:
        """Accept nothing more; what runs ends whole within `timeout_s`, then exit."""
        edge, plane = self._edge, self._plane
        if edge is None or plane is None or edge.draining:
            self._finish(0)
            return
        edge.draining = True
        for listener in self._listeners:
            listener.close()
        self._close_idle()
        deadline = self._loop.time() + timeout_s
        while self._busy() and self._loop.time() < deadline:
            await asyncio.sleep(0.02)
            self._close_idle()
        for server in plane.servers:
            for connection in server.each():
                connection.abort()
        await asyncio.sleep(0)  # aborted transports say so in the next turn of the loop
        self._final_report()
        self._finish(0)

    def _final_report(self) -> None:
        assert self._configure is not None
        assert self._edge is not None
        totals = self._edge.meters.take_changed()
        self._send(Report(self._configure.slot, self._configure.incarnation, totals, 0))

    def _close_idle(self) -> None:
        assert self._plane is not None
        for server in self._plane.servers:
            for connection in server.each():
                if connection.idle and not connection.closing:
                    connection.finish()

    def _busy(self) -> bool:
        assert self._plane is not None
        return any(server.connections for server in self._plane.servers)

    def _reopen_logs(self) -> None:
        if self._log is not None:
            self._log.reopen()


async def _listen(
    loop: asyncio.AbstractEventLoop, server: EdgeServer, sock: socket.socket
) -> asyncio.Server:
    sock.setblocking(False)
    if sock.family == socket.AF_UNIX:
        return await loop.create_unix_server(server, sock=sock, backlog=_BACKLOG)
    # Accepted connections inherit these, which saves two calls for each.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return await loop.create_server(server, sock=sock, backlog=_BACKLOG)


async def _run(channel_fd: int) -> int:
    return await Worker(channel_fd).run()


def main(channel_fd: int) -> int:
    """The process that `gatewayd worker` is."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(message)s")
    import uvloop

    return uvloop.run(_run(channel_fd))
