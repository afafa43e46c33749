"""The data plane's processes: N worker slots and, once a router needs it, the bridge.

Owns: their number, what each is given at birth, the end. Does not own: one slot's life
(control.slot), what is published (control.publisher), what reports mean (control.telemetry).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from gatewayd.control.slot import Hooks, Slot, SlotProcess
from gatewayd.control.spawn import Argv, Spawned, own_command
from gatewayd.control.tasks import unless_told
from gatewayd.core.messages import Configure, Link, ListenerSpec, Message
from gatewayd.core.model import Limits, Log
from gatewayd.net import link as datagrams
from gatewayd.net.listeners import Listener
from gatewayd.net.loads import LoadTable

_log = logging.getLogger(__name__)

_AFTER_DRAIN_S: Final = 2.0


class Workers:
    """`hooks` tell the owner; the shared tables are already consistent then."""

    def __init__(
        self,
        count: int,
        *,
        limits: Limits,
        log: Log,
        listeners: Sequence[Listener],
        loads: LoadTable,
        buckets_fd: int,
        demand_fd: int,
        hooks: Hooks,
        argv: Argv = own_command,
        ahead: list[Spawned],
    ) -> None:
        self._limits = limits
        self._log_spec = log
        self._listeners = listeners
        self._loads = loads
        self._tables = (loads.fd, buckets_fd, demand_fd)
        self._hooks = hooks
        inner = replace(hooks, died=self._died)
        self.slots = [Slot("worker", i, self._for_worker, inner, argv, ahead) for i in range(count)]
        self.bridge = Slot("bridge", count, self._for_bridge, inner, argv)
        self._ahead = ahead
        self._bridge_wanted = False

    def __repr__(self) -> str:
        return f"<Workers {len(self.ready())}/{len(self.slots)} ready>"

    def start(self) -> None:
        for slot in self.slots:
            slot.start()
        while self._ahead:
            self._ahead.pop().discard()

    def want_bridge(self) -> None:
        """Start the bridge unless it runs already; it then stays."""
        if not self._bridge_wanted:
            self._bridge_wanted = True
            self.bridge.start()

    @property
    def bridge_wanted(self) -> bool:
        return self._bridge_wanted

    def alive(self) -> list[SlotProcess]:
        return [slot.process for slot in self.slots if slot.process is not None]

    def ready(self) -> list[SlotProcess]:
        """The workers that serve now."""
        return [process for process in self.alive() if process.ready]

    def processes(self) -> Iterator[SlotProcess]:
        for slot in self._running_slots():
            if slot.process is not None:
                yield slot.process

    @property
    def restarts(self) -> int:
        return sum(slot.restarts for slot in self.slots)

    def introduce(self, process: SlotProcess) -> None:
        """Link the bridge, once it serves, with each worker, whichever of them is new."""
        bridge = self.bridge.process
        if bridge is None or not bridge.ready:
            return
        for worker in self.alive() if process is bridge else [process]:
            ours, theirs = datagrams.Link.pair()
            worker.send(Link(bridge.slot), [ours.fileno()])
            bridge.send(Link(worker.slot), [theirs.fileno()])
            ours.close()
            theirs.close()

    def broadcast(self, message: Message) -> None:
        for process in self.processes():
            process.send(message)

    async def drain(self, timeout: float, stop: asyncio.Event | None = None) -> None:
        """Workers finish what runs, at most for `timeout` seconds or until `stop`; the bridge stays
        for them."""
        for slot in self.slots:
            slot.drain(timeout)
        end = self._end(self.slots, timeout + _AFTER_DRAIN_S)
        await unless_told(end, stop or asyncio.Event())

    async def stop(self, timeout: float = 0.0) -> None:
        """End whatever still runs, the bridge included."""
        if timeout and self._bridge_wanted:
            self.bridge.drain(timeout)
            await self._end([self.bridge], timeout + _AFTER_DRAIN_S)
        for slot in self._running_slots():
            slot.kill()
        await asyncio.gather(*(slot.ended() for slot in self._running_slots()))

    async def _end(self, slots: Sequence[Slot], timeout: float) -> None:
        tasks = [asyncio.ensure_future(slot.ended()) for slot in slots]
        _, pending = await asyncio.wait(tasks, timeout=timeout)
        for task in pending:
            task.cancel()
        for slot in slots:
            if slot.process is not None:
                _log.error("%r did not end within %g s and is killed", slot.process, timeout)
                slot.kill()
        await asyncio.gather(*(slot.ended() for slot in slots))

    def _died(self, process: SlotProcess) -> None:
        # What it was serving died with it; its successor must not inherit the counts.
        self._loads.clear_row(process.slot)
        self._hooks.died(process)

    def _running_slots(self) -> list[Slot]:
        return [*self.slots, self.bridge] if self._bridge_wanted else self.slots

    def _for_worker(self, slot: Slot, incarnation: int) -> tuple[Configure, list[int]]:
        specs: list[ListenerSpec] = []
        fds = [*self._tables]
        for each in self._listeners:
            for sock in each.for_slot(slot.number, len(self.slots)):
                specs.append(ListenerSpec(each.name, each.kind, each.tls))
                fds.append(sock.fileno())
        return self._configure(slot, incarnation, tuple(specs)), fds

    def _for_bridge(self, slot: Slot, incarnation: int) -> tuple[Configure, list[int]]:
        return self._configure(slot, incarnation, ()), [self._loads.fd]

    def _configure(
        self, slot: Slot, incarnation: int, listeners: tuple[ListenerSpec, ...]
    ) -> Configure:
        return Configure(
            slot=slot.number,
            slots=self._loads.slots,
            incarnation=incarnation,
            limits=self._limits,
            log=self._log_spec,
            listeners=listeners,
        )
