"""The life of a data-plane process: frames from control, acknowledgements, reports, draining.

Owns: the channel's end, signals, the order of start and stop. Does not own: what is served (a
`Role`: proxy.worker, bridge.main), spawning and replacing processes (control).
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
from typing import Final, Protocol

from gatewayd.core import reply as replies
from gatewayd.core.messages import (
    Ack,
    Configure,
    Drain,
    ForHandshakes,
    Link,
    Message,
    Publish,
    Published,
    Ready,
    ReopenLogs,
    Report,
    ServiceTotals,
)
from gatewayd.core.model import Log
from gatewayd.net import eventlog
from gatewayd.net.alarm import Alarm
from gatewayd.net.channel import Channel, ChannelClosedError
from gatewayd.net.loads import LoadTable
from gatewayd.net.scheduling import run_in_turns
from gatewayd.proxy.plane import Plane
from gatewayd.proxy.question import Asker

_log = logging.getLogger("gatewayd.process")
# A connection just accepted or just answered may have a request on its way, which a close would
# lose: while draining it is answered, with the word that it was the last.
NEXT_REQUEST_S: Final = 0.3
_ORPHAN_DRAIN_S: Final = 30.0  # after SIGTERM to a process whose control is gone
_LAST_WORDS_S: Final = 1.0  # for what is answered or cut when the time for draining is over


class Role(Protocol):
    """What a process does between its first frame and its exit."""

    serves_without_control: bool

    def configure(self, plane: Plane, configure: Configure, fds: list[int]) -> None:
        """`fds` are those behind the load table's."""

    async def publish(self, message: Publish, fds: list[int]) -> None:
        """Make a snapshot effective; it is acknowledged when this returns."""

    def secure(self, message: ForHandshakes) -> None:
        """Use these in handshakes from now on."""

    def link(self, slot: int, fd: int) -> None:
        """A link to the process that holds `slot` now."""

    def totals(self) -> dict[str, ServiceTotals]: ...

    def drain(self) -> None:
        """Accept nothing more."""

    def reopen_logs(self) -> None: ...

    async def aclose(self) -> None: ...


class DataProcess:
    """Runs one role until control says drain, or is gone and nobody needs the role any more."""

    def __init__(self, channel_fd: int, role: Role) -> None:
        self._loop = asyncio.get_running_loop()
        self._role = role
        self._done: asyncio.Future[int] = self._loop.create_future()
        self._channel = Channel(
            socket.socket(fileno=channel_fd), self._on_message, self._on_channel_closed
        )
        self._configure: Configure | None = None
        self._plane: Plane | None = None
        self._publishing: asyncio.Queue[tuple[Published, list[int]]] = asyncio.Queue()
        self._alarm: Alarm | None = None
        self._told = -1, 0  # connections, and what ran, in the last report
        self._ready = False
        self._draining = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        loop = self._loop
        loop.add_signal_handler(signal.SIGTERM, self._on_sigterm)
        for ignored in (
            signal.SIGINT,
            signal.SIGHUP,
            signal.SIGUSR2,
        ):  # a terminal sends them to everybody
            loop.add_signal_handler(ignored, _nothing)
        loop.add_signal_handler(signal.SIGUSR1, self._role.reopen_logs)
        self._spawn(self._publish_all())
        code = await self._done
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._role.aclose()
        if self._plane is not None:
            await self._plane.aclose()
        self._channel.close()
        return code

    def _spawn(self, work: asyncio._CoroutineLike[None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a task of the process failed; it ends", exc_info=error)
            self._finish(1)

    def _finish(self, code: int) -> None:
        if not self._done.done():
            self._done.set_result(code)

    # --- what control says

    def _on_message(self, message: Message, fds: list[int]) -> None:
        if isinstance(message, Configure):
            self._configure = message
            eventlog.configure(message.log)
            self._alarm = Alarm(fds[0])
            loads = LoadTable.attach(fds[1], message.slots, message.slot)
            loads.clear_row(message.slot)
            asker = Asker(self._loop, message.slot)
            self._plane = Plane(self._loop, loads, asker)
            self._plane.on_news = self._report_soon
            self._plane.body_idle_timeout = message.limits.body_idle_timeout
            self._role.configure(self._plane, message, fds[2:])
        elif isinstance(message, Publish | ForHandshakes):
            self._publishing.put_nowait((message, fds))
        elif isinstance(message, Link):
            self._role.link(message.slot, fds[0])
        elif isinstance(message, Drain):
            self._spawn(self._drain(message.timeout))
        elif isinstance(message, ReopenLogs):
            self._role.reopen_logs()

    async def _publish_all(self) -> None:
        """One at a time and in order; the first snapshot makes the process ready."""
        while True:
            message, fds = await self._publishing.get()
            if not isinstance(message, Publish):
                self._role.secure(message)
                self._send(Ack(message.version))
                continue
            await self._role.publish(message, fds)
            if not self._ready:
                self._become_ready()
            self._send(Ack(message.snapshot.version))

    def _become_ready(self) -> None:
        assert self._plane is not None
        assert self._alarm is not None
        self._ready = True
        self._plane.start(self._report, self._alarm.ring_in)
        collect_seldom()
        self._send(Ready(os.getpid()))
        self._report()

    def _send(self, message: Message) -> None:
        try:
            self._channel.send(message)
        except ChannelClosedError:
            pass  # serving on without control

    def _report(self) -> None:
        if self._channel.closed or self._done.done():
            return  # serving on without control, or at the end: the last report is sent
        report = self._make_report()
        if report is not None:
            self._send(report)

    def _report_soon(self) -> None:
        """A replica refuses: routers are to lose it now, not at the next report. Or a client waits
        for a certificate."""
        if self._ready and not self._channel.closed:
            self._loop.call_soon(self._report)

    def _make_report(self) -> Report | None:
        """None when there is nothing that the last one did not tell."""
        configure, plane = self._configure, self._plane
        assert configure is not None
        assert plane is not None
        totals = self._role.totals()
        connections = sum([server.count for server in plane.servers])
        unreachable, sighted = plane.unreachable, plane.sighted
        told = connections, plane.running
        if not (totals or unreachable or sighted) and told == self._told:
            return None
        self._told = told
        plane.unreachable, plane.sighted = set(), set()
        return Report(
            slot=configure.slot,
            incarnation=configure.incarnation,
            totals=totals,
            connections=connections,
            unreachable=tuple(sorted(unreachable)),
            sighted=tuple(sorted(sighted)),
        )

    def _on_channel_closed(self) -> None:
        if not self._ready or not self._role.serves_without_control:
            self._finish(1)
        elif not self._draining:
            _log.warning("control is gone; serving on with the last snapshot until SIGTERM")

    # --- endings

    def _on_sigterm(self) -> None:
        # While control lives it decides, and its own SIGTERM may have reached the whole group.
        if self._channel.closed:
            self._spawn(self._drain(_ORPHAN_DRAIN_S))

    async def _drain(self, timeout_s: float) -> None:
        """Accept nothing more; what runs ends whole within `timeout_s`, then exit."""
        plane = self._plane
        if plane is None or self._draining:
            self._finish(0)
            return
        self._draining = True
        self._role.drain()
        await _emptied(plane, timeout_s)
        await _end_all(plane, timeout_s)
        self._report()
        self._finish(0)


def _close_idle(plane: Plane, idle_s: float = NEXT_REQUEST_S) -> None:
    until = plane.loop.time() - idle_s
    for server in plane.servers:
        for connection in server.each():
            connection.finish_idle(until)


async def _emptied(plane: Plane, within_s: float) -> None:
    """Until no connection is left."""
    deadline = plane.loop.time() + within_s
    _close_idle(plane)
    while any(s.count for s in plane.servers) and plane.loop.time() < deadline:
        await asyncio.sleep(0.02)
        _close_idle(plane)


async def _end_all(plane: Plane, timeout_s: float) -> None:
    """The time is over: who waits is answered, whose answer runs must see that it is cut."""
    ended = 0
    for server in plane.servers:
        ended += sum(connection.end_exchange(replies.STOPPING) for connection in server.each())
    if ended:
        _log.warning(
            "requests still running after %g s of draining are ended: %d", timeout_s, ended
        )
    await _emptied(plane, _LAST_WORDS_S)
    for server in plane.servers:
        for connection in server.each():
            connection.abort()
    await asyncio.sleep(0)  # aborted transports say so in the next turn of the loop


def collect_seldom() -> None:
    """What lives now lives on: a full collection of it would cost milliseconds. And a request
    leaves no circles behind."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def _nothing() -> None:
    """Control decides what a signal to the whole group means."""


def run_process(channel_fd: int, role: Role) -> int:
    """The whole of a `gatewayd worker` or `gatewayd bridge`; returns its exit code."""
    import uvloop

    run_in_turns()
    eventlog.configure(Log())  # until the first frame says how

    async def run() -> int:
        return await DataProcess(channel_fd, role).run()

    return uvloop.run(run())
