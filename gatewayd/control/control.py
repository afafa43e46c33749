"""The control process: everything slow, none of the traffic.

Owns: the order of start and stop, who is told what. Does not own: each part's work, signals
(control.serve).

Start: state directory, sockets, tables, processes, first snapshot; only then what takes long to
import or to come up (the admin address, routers). Stop: the workers drain while the admin address
tells so, then it goes, the routers, and last the bridge that they talk to.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
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
from gatewayd.control.pid_file import PidFile
from gatewayd.control.publisher import Publisher
from gatewayd.control.reachability import Reachability
from gatewayd.control.registry import Registry
from gatewayd.control.reload import LoadConfig, Reloader
from gatewayd.control.restore import last_state
from gatewayd.control.roles import Roles
from gatewayd.control.router_host import RouterHost
from gatewayd.control.router_hosts import RouterHosts
from gatewayd.control.saved import put_back
from gatewayd.control.slot import Hooks, SlotProcess
from gatewayd.control.sockets import Sockets
from gatewayd.control.spawn import Argv, Spawned
from gatewayd.control.state import State
from gatewayd.control.status import Status
from gatewayd.control.store import Store
from gatewayd.control.succession import Holding, Predecessor, Succession
from gatewayd.control.survivors import StateDir
from gatewayd.control.tasks import Tasks
from gatewayd.control.telemetry import Telemetry
from gatewayd.control.tunnels import SshTunnels
from gatewayd.control.workers import Workers
from gatewayd.core.messages import ReopenLogs, Report
from gatewayd.core.model import Address, RouterSpec
from gatewayd.net.buckets import SharedStore
from gatewayd.net.demand import DemandTable
from gatewayd.net.handover import Inherited
from gatewayd.net.loads import LoadTable
from gatewayd.net.notify import Notifier
from gatewayd.routers.base import load, port_pool

_log = logging.getLogger(__name__)

_REMOVAL_TIMEOUT_S: Final = 1.0
READY_TIMEOUT_S: Final = 30.0


class Control:
    def __init__(
        self,
        config: Config,
        *,
        load: LoadConfig | None,
        environ: Mapping[str, str],
        argv: Argv,
        ahead: list[Spawned],
        inherited: Inherited | None = None,
        again: Sequence[str] | None = None,
    ) -> None:
        self.config = config
        self.stop_asked = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._started = False
        self._built = False
        self._load_config = load
        self._environ = environ
        self._argv = argv
        self._ahead = ahead
        self._ready_changed = asyncio.Event()
        self._tasks = Tasks()
        self._closers = AsyncExitStack()
        self.state = State(
            config.auth,
            config.registered_auth,
            config.trusted_proxies,
            config.project,
            entrypoint=config.model_endpoint,
        )
        self.telemetry = Telemetry()
        self.state_dir = StateDir(config.state_dir)
        self.sockets = Sockets()
        self.notifier = Notifier(environ.get("NOTIFY_SOCKET"))
        self.predecessor = None if inherited is None else Predecessor(inherited)
        self.pid_file = PidFile(config.run_dir)
        self.succession = Succession(
            again,
            environ,
            self.state_dir,
            self.notifier,
            Holding(
                opened=self.sockets.opened,
                freeze=lambda: self.custody.give_away(),
                thaw=lambda: self.custody.take_back(),
                pids=lambda: [process.pid for process in self.workers.processes()],
                taken=self.stop_asked.set,
                drain_timeout=lambda: self.reloader.config.drain_timeout,
            ),
        )

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The public addresses that are bound."""
        return tuple(listener.address for listener in self.sockets.public)

    # --- start ---------------------------------------------------------------------------------

    async def start(self) -> None:
        config, predecessor = self.config, self.predecessor
        if predecessor is not None:
            self._closers.callback(predecessor.close)
        self.state_dir.acquire(None if predecessor is None else predecessor.lock_fd)
        self._closers.callback(self.state_dir.release)
        survivors = self.state_dir.survivors()
        self.sockets.bind(
            config,
            self._environ,
            takeover=bool(survivors),
            inherited=None if predecessor is None else predecessor.sockets,
        )
        self._closers.callback(self.sockets.close)
        self._build()
        if predecessor is not None:
            import gatewayd.control.admin  # noqa: F401 - as long as the predecessor answers

            await predecessor.hand_over_state()
            survivors = self.state_dir.survivors()
        self.custody.survivors = survivors
        self.demands.restore(process.pid for process in survivors)
        self._restore()
        self.workers.start()
        self.routers.follow()
        self.publisher.start()
        await self.certificates.follow(config)  # first: the first snapshot opens the listeners
        self._tasks.own(self.demands.run(), "demand")
        await self.publisher.publish()
        if predecessor is not None:
            await self._until_ready()
            await predecessor.leave()  # until it has, its calls are the ones that count
            predecessor.sockets.close()  # of addresses that the file does not name any more
            self.state_dir.sign()
            self.sockets.owns_files = True
        self.pid_file.write()
        self._closers.callback(self.pid_file.remove)
        await self._serve_admin()
        await self._until_ready()
        self._started = True
        if survivors:
            dismissal = self.custody.dismiss_survivors(predecessor, config.drain_timeout)
            self._tasks.own(dismissal, "dismiss survivors")

    def _restore(self) -> None:
        """Services of the file, and what was registered beside them."""
        self.state.services = {service.key: service for service in self.config.services}
        saved = last_state(self.config, self.store)
        for line in put_back(saved, self.state):
            _log.warning("%s", line)
        self.keeper.begin_with(saved)
        self.registry.resume()

    def _build(self) -> None:
        config = self.config
        self._built = True
        self.loads = LoadTable.create(config.workers + 1)
        self.buckets = SharedStore.create()
        self.demand_table = DemandTable.create(config.workers)
        self.demands = Demands(self.demand_table, DemandStore(config.state_dir))
        self.workers = Workers(
            config.workers,
            limits=config.limits,
            log=config.log,
            listeners=self.sockets.public,
            loads=self.loads,
            buckets_fd=self.buckets.fd,
            demand_fd=self.demand_table.fd,
            hooks=Hooks(
                spawned=self._spawned,
                ready=self._process_ready,
                acked=lambda _: self._ready_changed.set(),
                reported=self._reported,
                died=self._died,
            ),
            argv=self._argv,
            ahead=self._ahead,
        )
        self.indexes = IndexLeases(self.loads)
        self.ports = PortLeases(config.ports.bridge.first, config.ports.bridge.last)
        self.router_ports = port_pool(config.ports.router.first, config.ports.router.last)
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
        self.store = Store(config.state_dir)
        self.keeper = Keeper(self.state, self.store)
        self.custody = Custody(self.state_dir, self.workers, self.keeper, self.demands)
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
        self.reloader = Reloader(
            config, self._load_config, self.state, self.registry, self.certificates
        )
        self.status = Status(
            state=self.state,
            workers=self.workers,
            publisher=self.publisher,
            routers=self.routers,
            roles=self.roles,
            tunnels=self.tunnels,
            indexes=self.indexes,
            telemetry=self.telemetry,
            sockets=self.sockets,
            reloader=self.reloader,
            certificates=self.certificates,
            succession=self.succession,
        )
        # Undone from the last to the first.
        for table in (self.demand_table, self.buckets, self.loads, self.ports):
            self._closers.callback(table.close)
        self._closers.push_async_callback(self.demands.aclose)
        self._closers.push_async_callback(self._tasks.aclose)
        self._closers.push_async_callback(self.keeper.aclose)
        self._closers.push_async_callback(self.publisher.aclose)
        self._closers.push_async_callback(self.certificates.aclose)
        self._closers.push_async_callback(self.tunnels.aclose)
        self._closers.push_async_callback(self.workers.stop)
        self._closers.push_async_callback(self.roles.aclose)
        self._closers.push_async_callback(self.reachability.aclose)
        self._closers.push_async_callback(self.registry.aclose)
        self._closers.push_async_callback(self.routers.aclose)

    def _make_router(
        self, service_key: str, spec: RouterSpec, on_change: Callable[[], None]
    ) -> RouterHost:
        project, _, name = service_key.partition("/")
        folder = name if project == self.config.project else f"{project}@{name}"
        return RouterHost(
            service_key,
            spec,
            ports=self.router_ports,
            log_dir=Path(self.config.state_dir, "router_logs", folder),
            on_change=on_change,
        )

    async def _serve_admin(self) -> None:
        # Imported now: what takes half a second to import must not delay the workers' start.
        from gatewayd.control.admin import serve_admin
        from gatewayd.control.api.server import AdminServer

        self.custody.admin = server = AdminServer()
        self._closers.push_async_callback(server.aclose)
        await serve_admin(
            server,
            sockets=self.sockets,
            status=self.status,
            state=self.state,
            registry=self.registry,
            reloader=self.reloader,
            demands=self.demands,
            certificates=self.certificates,
        )

    async def _until_ready(self) -> None:
        """Every worker serves the first snapshot."""
        while not self.publisher.up_to_date():
            self._ready_changed.clear()
            try:
                async with asyncio.timeout(READY_TIMEOUT_S):
                    await self._ready_changed.wait()
            except TimeoutError:
                _log.error("not every worker serves yet, see above; trying goes on")

    def _published(self) -> None:
        self.telemetry.keep(self.state.services)
        self.demands.keep(self.state.services.values())
        self.roles.follow()
        self.routers.follow()
        self.reachability.look_at_new()

    def _reachability_changed(self) -> None:
        self.roles.follow()
        self.routers.follow()
        self._tasks.own(self._publish_removals(), "publish removals")

    async def _publish_removals(self) -> None:
        """Workers that were led to a dead replica wait for this before they ask a router again."""
        await self.routers.synced(_REMOVAL_TIMEOUT_S)
        self.publisher.request()

    # --- what the data plane tells -------------------------------------------------------------

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

    def _died(self, process: SlotProcess) -> None:
        self.telemetry.ended(process)
        self.demands.died(process.slot)

    # --- what an operator asks, by signal ------------------------------------------------------

    def ask_to_stop(self) -> None:
        """Drain and stop; asked again: stop now."""
        if self.stop_asked.is_set():
            self._stop_now.set()
        self.stop_asked.set()

    def ask_to_reload(self) -> None:
        if self.succession.under_way:
            _log.error("SIGHUP: a successor is starting, and reads the file itself")
        elif self._started:
            self._tasks.own(self._reload(), "reload")

    async def _reload(self) -> None:
        self.notifier.reloading()
        await self.reloader.reload_for_signal()
        self.notifier.ready()

    def ask_to_be_succeeded(self) -> None:
        self.succession.begin(serving=self._started and not self.stop_asked.is_set())

    def reopen_logs(self) -> None:
        if self._started:
            self.workers.broadcast(ReopenLogs())

    # --- stop ----------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Drain what serves, then end everything; a second signal ends the draining."""
        taken = self.succession.taken
        if taken:
            self.sockets.owns_files = False
            await self.certificates.aclose()  # renewing them is the successor's
        else:
            self.notifier.stopping()
            await self.succession.aclose()
        if self._started or (self.predecessor is not None and self._built):
            self.status.draining = True
            self.sockets.close_public()
            config = self.reloader.config
            timeout = config.upgrade_drain_timeout if taken else config.drain_timeout
            _log.info("stopping: draining for at most %g s", timeout)
            await self.workers.drain(timeout, self._stop_now)
        await self.dismantle()

    async def dismantle(self) -> None:
        """Whatever was started, in the opposite order."""
        await self._closers.aclose()
