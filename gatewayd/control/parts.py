"""The parts of control, made and joined: who needs whom, and who is told what.

Owns: making them once the sockets are bound, closing them, handing on what one tells the others.
Does not own: when each begins (control.control), what each does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from gatewayd.config.model import Config
from gatewayd.control.certs import Certificates
from gatewayd.control.compiler import Compiler
from gatewayd.control.custody import Custody
from gatewayd.control.demand_store import DemandStore
from gatewayd.control.demands import Demands
from gatewayd.control.keeper import Keeper
from gatewayd.control.leases import IndexLeases, PortLeases
from gatewayd.control.publisher import Publisher
from gatewayd.control.pulse import Pulse
from gatewayd.control.reachability import Reachability
from gatewayd.control.registry import Registry
from gatewayd.control.reload import LoadConfig, Reloader
from gatewayd.control.roles import Roles
from gatewayd.control.router_host import RouterHost
from gatewayd.control.router_hosts import RouterHosts
from gatewayd.control.slot import Hooks, SlotProcess
from gatewayd.control.sockets import Sockets
from gatewayd.control.spawn import Argv, Spawned
from gatewayd.control.state import State
from gatewayd.control.status import Status
from gatewayd.control.store import Store
from gatewayd.control.succession import Succession
from gatewayd.control.survivors import StateDir
from gatewayd.control.tasks import Tasks
from gatewayd.control.telemetry import Telemetry
from gatewayd.control.tunnels import SshTunnels
from gatewayd.control.workers import Workers
from gatewayd.core.messages import Report
from gatewayd.core.model import RouterSpec, TcpAddress
from gatewayd.net.buckets import SharedStore
from gatewayd.net.demand import DemandTable
from gatewayd.net.loads import LoadTable
from gatewayd.routers.base import load, port_pool

_log = logging.getLogger(__name__)

_REMOVAL_TIMEOUT_S: Final = 1.0
READY_TIMEOUT_S: Final = 30.0
_ENGINE_PORT: Final = 30000  # where engines listen that are not told where


class Parts:
    def __init__(
        self,
        config: Config,
        *,
        load_config: LoadConfig | None,
        argv: Argv,
        ahead: list[Spawned],
        sockets: Sockets,
        state_dir: StateDir,
        succession: Succession,
    ) -> None:
        self._config = config
        self._ready_changed = asyncio.Event()
        self._closers = AsyncExitStack()
        self.tasks = Tasks()
        self.state = State(
            config.auth,
            config.registered_auth,
            config.trusted_proxies,
            config.project,
            entrypoint=config.model_endpoint,
        )
        self.telemetry = Telemetry()
        self.loads = LoadTable.create(config.workers + 1)
        self.buckets = SharedStore.create()
        self.demand_table = DemandTable.create(config.workers)
        self.demands = Demands(self.demand_table, DemandStore(config.state_dir))
        self.pulse = Pulse()
        self.pulse.each(self.demands.beat)
        self.workers = Workers(
            config.workers,
            limits=config.limits,
            log=config.log,
            listeners=sockets.public,
            loads=self.loads,
            buckets_fd=self.buckets.fd,
            demand_fd=self.demand_table.fd,
            hooks=Hooks(
                spawned=self._spawned,
                ready=self._process_ready,
                acked=lambda _: self._ready_changed.set(),
                reported=self._reported,
                died=self._died,
                heard=self.pulse.awake,
            ),
            argv=argv,
            ahead=ahead,
        )
        self.indexes = IndexLeases(self.loads)
        self.ports = PortLeases(config.ports.bridge.first, config.ports.bridge.last)
        self.router_ports = port_pool(
            config.ports.router.first, config.ports.router.last, avoid=self._replica_ports
        )
        self.routers = RouterHosts(
            self.state,
            self._make_router,
            port_of=lambda service, replica: self.publisher.bridged(service, replica),
            load=self.indexes.load,
            on_change=lambda: self.publisher.request(),
        )
        compiler = Compiler(
            self.state, self.indexes, self.ports, self.routers, column=self.demands.column
        )
        self.publisher = Publisher(compiler, self.workers, self._published)
        self.certificates = Certificates(self.state, self.publisher)
        self.pulse.each(self.certificates.beat)
        self.store = Store(config.state_dir)
        self.keeper = Keeper(self.state, self.store)
        self.custody = Custody(state_dir, self.workers, self.keeper, self.demands)
        self.tunnels = SshTunnels(
            config.state_dir, on_change=lambda: self.registry.tunnels_changed()
        )
        self.registry = Registry(
            self.state,
            self.publisher,
            self.routers,
            self.indexes,
            keep=self.keeper.keep,
            tunnels=self.tunnels,
            certificates=self.certificates,
            drain_timeout=config.drain_timeout,
        )
        self.reachability = Reachability(self.state, self._reachability_changed)
        self.roles = Roles(
            self.state, lambda name: load(name).ask_role, lambda: self.publisher.request()
        )
        self.reloader = Reloader(config, load_config, self.state, self.registry, self.certificates)
        self.status = Status(
            state=self.state,
            workers=self.workers,
            publisher=self.publisher,
            routers=self.routers,
            roles=self.roles,
            tunnels=self.tunnels,
            indexes=self.indexes,
            demands=self.demands,
            telemetry=self.telemetry,
            sockets=sockets,
            reloader=self.reloader,
            certificates=self.certificates,
            succession=succession,
        )
        # Undone from the last to the first.
        for table in (self.demand_table, self.buckets, self.loads, self.ports):
            self._closers.callback(table.close)
        self._closers.push_async_callback(self.demands.aclose)
        self._closers.push_async_callback(self.tasks.aclose)
        self._closers.push_async_callback(self.keeper.aclose)
        self._closers.push_async_callback(self.publisher.aclose)
        self._closers.push_async_callback(self.certificates.aclose)
        self._closers.push_async_callback(self.tunnels.aclose)
        self._closers.callback(self.pulse.stop)
        self._closers.push_async_callback(self.workers.stop)
        self._closers.push_async_callback(self.roles.aclose)
        self._closers.push_async_callback(self.reachability.aclose)
        self._closers.push_async_callback(self.registry.aclose)
        self._closers.push_async_callback(self.routers.aclose)

    async def aclose(self) -> None:
        """From the last to the first."""
        await self._closers.aclose()

    async def until_ready(self) -> None:
        """Every worker serves the first snapshot."""
        while not self.publisher.up_to_date():
            self._ready_changed.clear()
            try:
                async with asyncio.timeout(READY_TIMEOUT_S):
                    await self._ready_changed.wait()
            except TimeoutError:
                _log.error("not every worker serves yet, see above; trying goes on")

    def _replica_ports(self) -> set[int]:
        """Where replicas on this machine listen, or will. A router there would keep an engine from
        starting, and be sent its requests."""
        addresses = [replica.address for _, replica in self.state.replicas()]
        return {a.port for a in addresses if isinstance(a, TcpAddress)} | {_ENGINE_PORT}

    def _make_router(
        self, service_key: str, spec: RouterSpec, on_change: Callable[[], None]
    ) -> RouterHost:
        project, _, name = service_key.partition("/")
        folder = name if project == self._config.project else f"{project}@{name}"
        return RouterHost(
            service_key,
            spec,
            ports=self.router_ports,
            log_dir=Path(self._config.state_dir, "router_logs", folder),
            on_change=on_change,
        )

    # --- what one part tells, and who is to hear of it -----------------------------------------

    def _published(self) -> None:
        self.telemetry.keep(self.state.services)
        self.demands.keep(self.state.services.values())
        self.roles.follow()
        self.routers.follow()
        self.reachability.look_at_new()

    def _reachability_changed(self) -> None:
        self.roles.follow()
        self.routers.follow()
        self.tasks.own(self._publish_removals(), "publish removals")

    async def _publish_removals(self) -> None:
        """Workers that were led to a dead replica wait for this before they ask a router again."""
        await self.routers.synced(_REMOVAL_TIMEOUT_S)
        self.publisher.request()

    def _spawned(self, process: SlotProcess) -> None:
        self.publisher.greet(process)
        if process.role == "worker":
            self.workers.introduce(process)
        self.custody.record()

    def _process_ready(self, process: SlotProcess) -> None:
        if process.role == "bridge":
            self.workers.introduce(process)  # not before: until now nobody would have answered
            self.publisher.request()  # its ports are to be acknowledged, then the routers told
        self._ready_changed.set()

    def _reported(self, process: SlotProcess, report: Report) -> None:
        self.telemetry.report(process, report)
        for endpoint in report.unreachable:
            service_key, _, replica_id = endpoint.partition("|")
            self.reachability.suspect(service_key, replica_id)
        self.certificates.sighted(report.sighted)

    def _died(self, process: SlotProcess) -> None:
        self.telemetry.ended(process)
        self.demands.died(process.slot)
