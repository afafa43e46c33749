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
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from gatewayd.config.model import Config
from gatewayd.control.certs import Certificates
from gatewayd.control.compiler import Compiler
from gatewayd.control.demand_store import DemandStore
from gatewayd.control.demands import Demands
from gatewayd.control.keeper import Keeper
from gatewayd.control.leases import IndexLeases, PortLeases
from gatewayd.control.publisher import Publisher
from gatewayd.control.reachability import Reachability
from gatewayd.control.registry import Registry
from gatewayd.control.reload import LoadConfig, Reloader
from gatewayd.control.restore import last_state
from gatewayd.control.roles import Roles
from gatewayd.control.router_check import check_router
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
from gatewayd.control.survivors import Known, StateDir, StateDirError, dismiss
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
_SURVIVOR_GRACE_S: Final = 5.0
_LAST_CALLS_S: Final = 20.0  # before a successor gets the state


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
        self._frozen = False  # a successor has the state, or is about to get it
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
        self._survivors: list[Known] = []
        self.succession = Succession(
            again,
            environ,
            self.state_dir,
            self.notifier,
            Holding(
                opened=self.sockets.opened,
                freeze=self._freeze,
                thaw=self._thaw,
                pids=lambda: [process.pid for process in self.workers.processes()],
                taken=self.stop_asked.set,
                drain_timeout=lambda: self.reloader.config.drain_timeout,
            ),
        )

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The public addresses that are bound."""
        return tuple(listener.address for listener in self.sockets.public)

    def summary(self) -> str:
        services = self.state.services.values()
        replicas = sum(len(service.replicas) for service in services)
        return (
            f"ready: {', '.join(f'{each.scheme} {each.address}' for each in self.sockets.public)}, "
            f"admin {self.sockets.admin_address}; {len(self.workers.slots)} workers, "
            f"{len(services)} services, {replicas} replicas"
        )

    # --- start ---------------------------------------------------------------------------------

    async def start_unless_stopped(self) -> bool:
        """False when a signal came first."""
        start = asyncio.create_task(self.start(), name="start")
        stop = asyncio.create_task(self.stop_asked.wait(), name="stop signal")
        try:
            await asyncio.wait((start, stop), return_when=asyncio.FIRST_COMPLETED)
            if start.done():
                await start
                return True
            return False
        finally:
            start.cancel()
            stop.cancel()
            await asyncio.gather(start, stop, return_exceptions=True)

    async def start(self) -> None:
        config, predecessor = self.config, self.predecessor
        if predecessor is not None:
            self._closers.callback(predecessor.close)
        self.state_dir.acquire(None if predecessor is None else predecessor.lock_fd)
        self._closers.callback(self.state_dir.release)
        self._survivors = self.state_dir.survivors()
        self.sockets.bind(
            config,
            self._environ,
            takeover=bool(self._survivors),
            inherited=None if predecessor is None else predecessor.sockets,
        )
        self._closers.callback(self.sockets.close)
        self._build()
        if predecessor is not None:
            _import_admin()  # as long as the predecessor answers
            await predecessor.hand_over_state()
            self._survivors = self.state_dir.survivors()
        self.demands.restore(process.pid for process in self._survivors)
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
            self.state_dir.sign()
            self.sockets.owns_files = True
        self._write_pid()
        await self._serve_admin()
        await self._until_ready()
        self._started = True
        if self._survivors:
            self._tasks.own(self._dismiss_survivors(), "dismiss survivors")

    async def _dismiss_survivors(self) -> None:
        """A predecessor that lives drains its own, for as long as they need."""
        if self.predecessor is not None:
            await self.predecessor.gone()
        await dismiss(self._survivors, self.config.drain_timeout + _SURVIVOR_GRACE_S)
        self._survivors = []
        self.demands.predecessors_gone()

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
                self._spawned, self._process_ready, self._acked, self._reported, self._died
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
        )
        # Undone from the last to the first.
        self._closers.callback(self._close_tables)
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

    def _close_tables(self) -> None:
        self.ports.close()
        self.loads.close()
        self.buckets.close()
        self.demand_table.close()

    def _write_pid(self) -> None:
        if self.config.run_dir is None:
            return
        path = Path(self.config.run_dir, "gatewayd.pid")
        try:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            path.write_text(f"{os.getpid()}\n")
        except OSError as error:
            raise StateDirError(f"run_dir {self.config.run_dir}: {error.strerror}") from error
        self._closers.callback(self._remove_pid, path)

    def _remove_pid(self, path: Path) -> None:
        if not self.succession.taken:  # then it has the successor's
            path.unlink(missing_ok=True)

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
        from gatewayd.control.api.auth_calls import AuthCalls
        from gatewayd.control.api.certificate_calls import CERTIFICATE_BODIES, CertificateCalls
        from gatewayd.control.api.describe import Describe
        from gatewayd.control.api.ops_calls import OpsCalls
        from gatewayd.control.api.registry_calls import BODIES, RegistryCalls
        from gatewayd.control.api.server import AdminServer
        from gatewayd.control.api.stats_calls import StatsCalls
        from gatewayd.control.metrics import Exposition

        assert self.sockets.admin is not None
        ops = OpsCalls(self.status, Exposition(self.status.sample), self.reloader)
        calls = RegistryCalls(self.registry, self.state, self.reloader, check_router)
        stats = StatsCalls(self.demands, self.state, self.reloader)
        self.admin = AdminServer()
        self._closers.push_async_callback(self.admin.aclose)
        certs = CertificateCalls(self.certificates)
        auth = AuthCalls(self.state)
        describe = Describe({**BODIES, **CERTIFICATE_BODIES})
        await self.admin.serve(self.sockets.admin, ops, calls, stats, certs, auth, describe)
        if self.sockets.metrics is not None:
            await self.admin.serve_metrics(self.sockets.metrics, ops)

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
        self._record_processes()

    def _record_processes(self) -> None:
        if not self._frozen:
            theirs = (process.pid for process in self._survivors)
            self.state_dir.record((*(p.pid for p in self.workers.processes()), *theirs))

    def _process_ready(self, process: SlotProcess) -> None:
        if process.role == "bridge":
            self.workers.introduce(process)  # not before: until now nobody would have answered
            self.publisher.request()  # its ports are to be acknowledged, then the routers told
        self._ready_changed.set()

    def _acked(self, process: SlotProcess) -> None:
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
        if self._started and not self.stop_asked.is_set():
            self.succession.begin()

    def reopen_logs(self) -> None:
        if self._started:
            self.workers.broadcast(ReopenLogs())

    # --- stop ----------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Drain what serves, then end everything; a second signal ends the draining."""
        taken = self.succession.taken
        if taken:
            self.sockets.owns_files = False
        else:
            self.notifier.stopping()
            await self.succession.aclose()
        if self._started or (self.predecessor is not None and self._built):
            self.status.draining = True
            self.sockets.close_public()
            config = self.reloader.config
            timeout = config.upgrade_drain_timeout if taken else config.drain_timeout
            _log.info("stopping: draining for at most %g s", timeout)
            await self._drain(timeout)
        await self.dismantle()

    async def _freeze(self) -> None:
        await self.admin.pause(_LAST_CALLS_S)
        await self.keeper.aclose()
        await self.demands.give_away()
        self._frozen = True

    async def _thaw(self) -> None:
        self._frozen = False
        self._record_processes()
        self.demands.take_back()
        if self.admin.paused:
            await self.admin.resume()

    async def dismantle(self) -> None:
        """Whatever was started, in the opposite order."""
        await self._closers.aclose()

    async def _drain(self, timeout: float) -> None:
        drain = asyncio.create_task(self.workers.drain(timeout), name="drain")
        now = asyncio.create_task(self._stop_now.wait(), name="second signal")
        try:
            await asyncio.wait((drain, now), return_when=asyncio.FIRST_COMPLETED)
        finally:
            drain.cancel()
            now.cancel()
            await asyncio.gather(drain, now, return_exceptions=True)


def _import_admin() -> None:
    """What `_serve_admin` needs."""
    import gatewayd.control.api.registry_calls
    import gatewayd.control.api.server
    import gatewayd.control.metrics  # noqa: F401
