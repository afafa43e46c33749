"""Control's parts around scripted processes: what a test of one part needs of the others."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from free_ports import free_range
from waiting import until

from gatewayd.control.compiler import Compiler, RouterView
from gatewayd.control.leases import IndexLeases, PortLeases
from gatewayd.control.parts import Parts
from gatewayd.control.publisher import Publisher
from gatewayd.control.registry import Registry
from gatewayd.control.slot import Hooks, SlotProcess
from gatewayd.control.spawn import Role
from gatewayd.control.state import State
from gatewayd.control.telemetry import Telemetry
from gatewayd.control.workers import Workers
from gatewayd.core.messages import Report
from gatewayd.core.model import Limits, Log, Replica, RouterTraits, Service, TcpAddress, UnixAddress
from gatewayd.net.buckets import SharedStore
from gatewayd.net.demand import DemandTable
from gatewayd.net.listeners import Listener
from gatewayd.net.loads import LoadTable

SCRIPT = Path(__file__).parent.parent / "scripted_process.py"


def replica(id_: str, **more: Any) -> Replica:
    return Replica(id_, UnixAddress(f"/run/{id_}.sock"), **more)


def service(name: str = "llama", *replicas: str, **more: Any) -> Service:
    return Service(
        project="main",
        name=name,
        domains=(f"{name}.example.com",),
        replicas=tuple(replica(r) for r in replicas),
        **more,
    )


@dataclass
class FakeRouters:
    """Routers as the publisher and the registry see them; `calls` is what they were told."""

    views: dict[str, RouterView] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    plant: Plant | None = None

    def view(self, service_key: str) -> RouterView | None:
        return self.views.get(service_key)

    def follow(self) -> None:
        self.calls.append("follow")

    async def drop(self, service_key: str, replica_ids: list[str]) -> None:
        self.calls.append(f"drop {','.join(replica_ids)}")
        await asyncio.sleep(0)

    def put(self, service_key: str, port: int | None) -> None:
        address = None if port is None else TcpAddress("127.0.0.1", port)
        self.views[service_key] = RouterView(f"@router:{port}", address, RouterTraits())


class Plant:
    """`behaviours[slot]` says how that slot's processes behave; the rest acknowledge."""

    def __init__(
        self,
        log: Path,
        *,
        workers: int = 2,
        behaviours: dict[int, str] | None = None,
        listeners: Sequence[Listener] = (),
        **more: Any,  # of the registry
    ) -> None:
        self.log = log
        self.behaviours = behaviours or {}
        self.events: list[str] = []
        self.reports: list[Report] = []
        self.state = State()
        self.telemetry = Telemetry()
        self.loads = LoadTable.create(workers + 1)
        self.buckets = SharedStore.create(8)
        self.demand = DemandTable.create(workers)
        hooks = Hooks(self._spawned, self._ready, self._acked, self._reported, self._died)
        self.workers = Workers(
            workers,
            limits=Limits(),
            log=Log(),
            listeners=listeners,
            loads=self.loads,
            buckets_fd=self.buckets.fd,
            demand_fd=self.demand.fd,
            hooks=hooks,
            argv=self._argv,
            ahead=[],
        )
        self._spawning = iter(())
        self.indexes = IndexLeases(self.loads)
        ports = free_range(300)
        self.ports = PortLeases(ports[0], ports[-1])
        self.routers = FakeRouters(plant=self)
        self.published = 0
        self.publisher = Publisher(
            Compiler(self.state, self.indexes, self.ports, self.routers),
            self.workers,
            self._published,
        )
        self.registry = Registry(self.state, self.publisher, self.routers, self.indexes, **more)

    async def __aenter__(self) -> Plant:
        self.workers.start()
        self.publisher.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.registry.aclose()
        await self.publisher.aclose()
        await self.workers.stop()
        self.ports.close()
        self.loads.close()
        self.buckets.close()
        self.demand.close()

    def frames(self, kind: str, pid: int | None = None) -> list[dict[str, Any]]:
        """What the processes say they got."""
        return [f for f in self.frames_of(pid) if f["frame"] == kind]

    def frames_of(self, pid: int | None) -> list[dict[str, Any]]:
        """The same of whatever kind, in order; of one process, or of all."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [f for f in map(json.loads, lines) if pid in (None, f["pid"])]

    async def all_ready(self) -> None:
        await until(self.publisher.up_to_date, "all workers ready")

    def process(self, slot: int) -> SlotProcess:
        process = (*self.workers.slots, self.workers.bridge)[slot].process
        assert process is not None
        return process

    def _argv(self, role: Role, fd: int) -> Sequence[str]:
        # A slot asks for its command while its process is missing.
        missing = [s.number for s in self.workers.slots if s.process is None]
        slot = len(self.workers.slots) if role == "bridge" else missing[0]
        return (sys.executable, str(SCRIPT), self.behaviours.get(slot, "ack"), str(fd))

    def _spawned(self, process: SlotProcess) -> None:
        self.events.append(f"spawned {process.role} {process.slot}.{process.incarnation}")
        self.publisher.greet(process)

    def _ready(self, process: SlotProcess) -> None:
        self.events.append(f"ready {process.role} {process.slot}.{process.incarnation}")
        if process.role == "bridge":
            self.publisher.request()

    def _acked(self, process: SlotProcess) -> None:
        pass

    def _reported(self, process: SlotProcess, report: Report) -> None:
        self.reports.append(report)
        self.telemetry.report(process, report)

    def _died(self, process: SlotProcess) -> None:
        self.events.append(f"died {process.role} {process.slot}.{process.incarnation}")
        self.telemetry.ended(process)

    def _published(self) -> None:
        self.published += 1


class Running:
    """Requests in flight on a replica, as a worker would count them."""

    def __init__(
        self, plant: Plant | Parts, service_key: str, replica_id: str, requests: int = 1
    ) -> None:
        self.table = LoadTable.attach(os.dup(plant.loads.fd), plant.loads.slots, 0)
        self.index = plant.indexes.lease((service_key, replica_id))
        for _ in range(requests):
            self.table.add(self.index)

    def end_one(self) -> None:
        self.table.done(self.index)
