"""The control process: everything slow, none of the traffic.

Owns: the order of start and stop, what an operator asks. Does not own: making the parts and joining
them (control.parts), each part's work, signals (control.serve).

Start: state directory, sockets, tables, processes, first snapshot; only then what takes long to
import or to come up (the admin address, routers). Stop: the workers drain while the admin address
tells so, then it goes, the routers, and last the bridge that they talk to.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Final

from gatewayd.config.model import Config
from gatewayd.control.limit_check import idle_limits_of
from gatewayd.control.parts import Parts
from gatewayd.control.pid_file import PidFile
from gatewayd.control.reload import LoadConfig
from gatewayd.control.restore import last_state
from gatewayd.control.saved import put_back
from gatewayd.control.sockets import Sockets
from gatewayd.control.spawn import Argv, Spawned
from gatewayd.control.succession import Holding, Predecessor, Succession
from gatewayd.control.survivors import StateDir
from gatewayd.core.messages import ReopenLogs
from gatewayd.core.model import Address
from gatewayd.net.handover import Inherited
from gatewayd.net.notify import Notifier

_log = logging.getLogger(__name__)

_LAST_CHANGES_S: Final = 20.0


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
        self._closers = AsyncExitStack()
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
                freeze=lambda: self.parts.custody.give_away(),
                thaw=lambda: self.parts.custody.take_back(),
                pids=lambda: [process.pid for process in self.parts.workers.processes()],
                taken=self.stop_asked.set,
                drain_timeout=lambda: self.parts.reloader.config.drain_timeout,
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
        parts = self._build()
        if predecessor is not None:
            import gatewayd.control.admin  # noqa: F401 - as long as the predecessor answers

            await predecessor.hand_over_state()
            survivors = self.state_dir.survivors()
        parts.custody.survivors = survivors
        parts.demands.restore(process.pid for process in survivors)
        self._restore()
        parts.pulse.start()
        parts.workers.start()
        parts.routers.follow()
        parts.publisher.start()
        await parts.certificates.follow(config)  # first: the first snapshot opens the listeners
        parts.demands.begin()
        await parts.publisher.publish()
        if predecessor is not None:
            await parts.until_ready()
            await predecessor.leave()  # until it has, its calls are the ones that count
            predecessor.sockets.close()  # of addresses that the file does not name any more
            self.state_dir.sign()
            self.sockets.owns_files = True
        self.pid_file.write()
        self._closers.callback(self.pid_file.remove)
        await self._serve_admin()
        await parts.until_ready()
        self._started = True
        if survivors:
            dismissal = parts.custody.dismiss_survivors(predecessor, config.drain_timeout)
            parts.tasks.own(dismissal, "dismiss survivors")

    def _build(self) -> Parts:
        self.parts = Parts(
            self.config,
            load_config=self._load_config,
            argv=self._argv,
            ahead=self._ahead,
            sockets=self.sockets,
            state_dir=self.state_dir,
            succession=self.succession,
        )
        self._built = True
        self._closers.push_async_callback(self.parts.aclose)
        return self.parts

    def _restore(self) -> None:
        """Services of the file, and what was registered beside them."""
        parts = self.parts
        parts.state.services = {service.key: service for service in self.config.services}
        saved = last_state(self.config, parts.store)
        for line in (*put_back(saved, parts.state), *idle_limits_of(self.config.services)):
            _log.warning("%s", line)
        parts.keeper.begin_with(saved)
        parts.registry.resume()

    async def _serve_admin(self) -> None:
        # Imported now: what takes half a second to import must not delay the workers' start.
        from gatewayd.control.admin import serve_admin
        from gatewayd.control.api.server import AdminServer

        parts = self.parts
        parts.custody.admin = server = AdminServer()
        self._closers.push_async_callback(server.aclose)
        await serve_admin(
            server,
            sockets=self.sockets,
            status=parts.status,
            state=parts.state,
            registry=parts.registry,
            reloader=parts.reloader,
            demands=parts.demands,
            certificates=parts.certificates,
        )

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
            self.parts.tasks.own(self._reload(), "reload")

    async def _reload(self) -> None:
        self.notifier.reloading()
        await self.parts.reloader.reload_for_signal()
        self.notifier.ready()

    def ask_to_be_succeeded(self) -> None:
        self.succession.begin(serving=self._started and not self.stop_asked.is_set())

    def reopen_logs(self) -> None:
        if self._started:
            self.parts.workers.broadcast(ReopenLogs())

    # --- stop ----------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Drain what serves, then end everything; a second signal ends the draining."""
        taken = self.succession.taken
        if taken:
            self.sockets.owns_files = False
            await self.parts.certificates.aclose()  # renewing them is the successor's
        else:
            self.notifier.stopping()
            await self.succession.aclose()
        if self._started or (self.predecessor is not None and self._built):
            config = self.parts.reloader.config
            if not taken:
                # Who registers takes a cut for a refusal, and a certificate needs the workers.
                last = min(config.drain_timeout, _LAST_CHANGES_S)
                await self.parts.custody.changes_end(last, self._stop_now)
            self.parts.status.draining = True
            self.sockets.close_public()
            timeout = config.upgrade_drain_timeout if taken else config.drain_timeout
            _log.info("stopping: draining for at most %g s", timeout)
            await self.parts.workers.drain(timeout, self._stop_now)
        await self.dismantle()

    async def dismantle(self) -> None:
        """Whatever was started, in the opposite order."""
        await self._closers.aclose()
