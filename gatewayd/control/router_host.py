"""Drives the router of one service: keeps it up, and keeps its targets those that are wanted.

Owns: the sync loop, the liveness probes, what "up" means, the status. Does not own: which targets
are wanted (control.router_hosts), the router's process and protocol (its plug-in below routers).

Everything is level-triggered: callers say what is wanted, never what to do. One task makes all
passes over the router's targets, so no two calls ever race.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gatewayd.core.model import Role, RouterSpec, RouterTraits, TcpAddress
from gatewayd.net.ports import PortPool
from gatewayd.routers.base import Router, RouterError, SyncState, Target, load

log = logging.getLogger(__name__)

PROBES_MISSED: Final = 3
SHOWN_WORDS: Final = 10
_NEEDED: Final[tuple[Role, ...]] = ("prefill", "decode")


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds. A hung router is found after at most `probe_every` and three times
    `max(probe_every, probe_timeout)`: 8 s."""

    sync_every: float = 5.0  # also without any change
    settle_poll: tuple[float, float] = (0.02, 0.25)  # between passes that are not done yet
    retry: float = 0.5  # after a pass that failed
    probe_every: float = 2.0
    probe_timeout: float = 2.0
    first_targets: float = 5.0  # a router back without targets is used all the same after this
    tidy_every: float = 60.0


class RouterHost:
    """A service's router. `on_change()` is called whenever `endpoint` or `serving` changes; without
    either the service's requests go straight to its replicas."""

    def __init__(
        self,
        service_key: str,
        spec: RouterSpec,
        *,
        ports: PortPool,
        log_dir: Path,
        on_change: Callable[[], None],
        pace: Pace = Pace(),
    ) -> None:
        self._spec = spec
        self._plugin = load(spec.type)
        self._name = f"router of {service_key}"
        self._router: Router = self._plugin.create(self._name, spec, ports=ports, log_dir=log_dir)
        self._on_change = on_change
        self._pace = pace
        self._tasks: list[asyncio.Task[None]] = []
        self._targets: tuple[Target, ...] = ()
        self._urls: dict[str, str] = {}  # of every target that is wanted or may still be there
        self._wish = 0  # counts the changes of what is wanted
        self._passed = -1  # the wish that the last whole pass was made for
        self._last = SyncState()
        self._fault: str | None = None
        self._answers = False  # the router is running and ready
        self._run = 0  # counts the times it became ready
        self._since = 0.0
        self._up = False  # it answers and has its targets
        self._polls = 0
        self._wake = asyncio.Event()
        self._tick = asyncio.Event()

    async def start(self) -> None:
        """Returns at once: a router that does not start is tried again, and `status` says why."""
        loop = asyncio.get_running_loop()
        self._router.start(self._router_came, self._router_went)
        self._tasks = [
            loop.create_task(self._sync_forever(), name=f"{self._name}: sync"),
            loop.create_task(self._watch_forever(), name=f"{self._name}: watch"),
        ]

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        try:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        finally:
            self._up = self._answers = False
            self._broadcast()
            await self._router.stop()

    def set_targets(self, targets: Sequence[Target]) -> None:
        """What the router shall have from now on, in this order of addition."""
        if tuple(targets) != self._targets:
            lacked = self.lacks
            self._targets = tuple(targets)
            if lacked != self.lacks:
                self._on_change()
            self._urls.update({target.id: target.url for target in targets})
            self._wish += 1
            self._wake.set()

    def remove_now(self, replica_id: str) -> None:
        """Its socket refuses: out with it, until `set_targets` names it again."""
        self._without({replica_id})

    async def drop(self, target_ids: Collection[str], timeout: float) -> bool:
        """Take these targets out of the router; True once it certainly sends them nothing new."""
        urls = {self._urls[id_] for id_ in target_ids if id_ in self._urls}
        self._without(set(target_ids))
        wish = self._wish
        return await self._until(
            lambda: not self._answers or (self._passed >= wish and not urls & self._last.present),
            timeout,
        )

    async def synced(self, timeout: float) -> bool:
        """Wait until the router is up and serves every target that is wanted."""
        return await self._until(
            lambda: (
                self._up
                and self._passed >= self._wish
                and self._last.serving >= {target.id for target in self._targets}
            ),
            timeout,
        )

    @property
    def endpoint(self) -> TcpAddress | None:
        return self._router.endpoint if self._up else None

    @property
    def serving(self) -> bool:
        """Whether it has a target to send to, of each role where there are roles."""
        return bool(self._last.serving) and not self.lacks

    @property
    def lacks(self) -> tuple[Role, ...]:
        """Roles that no target has, and without which it can serve nothing. Of a router that is
        not up only those that nobody has who is wanted: it will be told the others."""
        if not self._spec.pd_disaggregation:
            return ()
        serving = self._last.serving if self._up else {target.id for target in self._targets}
        have = {target.role for target in self._targets if target.id in serving}
        return tuple(role for role in _NEEDED if role not in have)

    @property
    def metrics_address(self) -> TcpAddress | None:
        return self._router.metrics_address

    @property
    def traits(self) -> RouterTraits:
        """Those of the router that `endpoint` names, with its key; without one, the static part."""
        return self._router.traits if self._up else self._plugin.traits(self._spec)

    @property
    def restarts(self) -> int:
        return self._router.restarts

    def status(self) -> dict[str, Any]:
        state = self._router.state
        if state == "ready" and not self._up:
            state = "restarting" if self.restarts else "starting"
        endpoint, metrics = self.endpoint, self.metrics_address
        return {
            "type": self._spec.type,
            "policy": self._spec.policy,
            "mode": "steer" if self._spec.steers(self.traits) else "through",
            "state": state,
            "pid": self._router.pid,
            "endpoint": str(endpoint) if endpoint is not None else None,
            "metrics": str(metrics) if metrics is not None else None,
            "lacks": list(self.lacks),
            "restarts": self.restarts,
            "last_exit": self._router.last_exit,
            "last_words": list(self._router.last_words[-SHOWN_WORDS:]),
            "fault": self._fault,
            "targets": {
                "desired": [target.id for target in self._targets],
                "serving": sorted(self._last.serving),
            },
        }

    # --- what the router tells -----------------------------------------------------------------

    def _router_came(self) -> None:
        self._answers = True
        self._run += 1
        self._since = asyncio.get_running_loop().time()
        self._wake.set()

    def _router_went(self) -> None:
        self._answers = False
        self._last = SyncState()
        was_up, self._up = self._up, False
        self._broadcast()
        if was_up:
            self._on_change()

    # --- targets -------------------------------------------------------------------------------

    def _without(self, target_ids: set[str]) -> None:
        self.set_targets([target for target in self._targets if target.id not in target_ids])

    async def _sync_forever(self) -> None:
        while True:
            self._wake.clear()
            pause: float | None = None
            if self._answers:
                try:
                    pause = await self._pass()
                except Exception:
                    log.exception("%s: its targets could not be compared", self._name)
                    pause = self._pace.sync_every
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()

    async def _pass(self) -> float:
        """Compare and correct once; seconds until the next time."""
        wish, run = self._wish, self._run
        try:
            state = await self._router.sync(self._targets)
        except RouterError as error:
            if run == self._run and self._answers:
                self._say_fault(str(error))
            return self._pace.retry
        if run != self._run or not self._answers:
            return 0.0  # it died under the pass; what was seen is of no use
        self._say_fault(None)
        served = self.serving
        self._last, self._passed = state, wish
        wanted = {target.id for target in self._targets}
        self._urls = {
            id_: url for id_, url in self._urls.items() if id_ in wanted or url in state.present
        }
        self._see_whether_up(state, served)
        self._broadcast()
        if state.settled:
            self._polls = 0
            return self._pace.sync_every
        self._polls += 1
        first, most = self._pace.settle_poll
        return min(most, first * 1.5 ** min(self._polls, 20))

    def _see_whether_up(self, state: SyncState, served: bool) -> None:
        """A router that came back is up as soon as it has a target to send to. `served`: it had
        one before this pass."""
        waited = asyncio.get_running_loop().time() - self._since >= self._pace.first_targets
        came = not self._up and bool(state.serving or not self._targets or waited)
        self._up = self._up or came
        if came or (self._up and served != self.serving):
            self._on_change()

    def _say_fault(self, fault: str | None) -> None:
        if fault is not None and fault != self._fault:
            log.warning("%s: %s", self._name, fault)
        self._fault = fault

    # --- liveness ------------------------------------------------------------------------------

    async def _watch_forever(self) -> None:
        loop = asyncio.get_running_loop()
        misses, run, tidied = 0, self._run, loop.time()
        while True:
            began = loop.time()
            alive = not self._answers or await self._probe()
            if alive or run != self._run:
                misses, run = 0, self._run
            else:
                misses += 1
            if misses >= PROBES_MISSED:
                misses = 0
                self._router.replace(f"no answer to {PROBES_MISSED} probes")
            if began - tidied >= self._pace.tidy_every:
                tidied = began
                await self._tidy()
            await asyncio.sleep(max(0.0, began + self._pace.probe_every - loop.time()))

    async def _probe(self) -> bool:
        try:
            async with asyncio.timeout(self._pace.probe_timeout):
                return await self._router.health()
        except TimeoutError:
            return False

    async def _tidy(self) -> None:
        try:
            await self._router.tidy()
        except OSError as error:
            log.warning("%s: its logs could not be tidied: %s", self._name, error)

    # --- waiting -------------------------------------------------------------------------------

    def _broadcast(self) -> None:
        tick, self._tick = self._tick, asyncio.Event()
        tick.set()

    async def _until(self, condition: Callable[[], bool], timeout: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while not condition():
                    await self._tick.wait()
        return condition()

    def __repr__(self) -> str:
        serving, wanted = len(self._last.serving), len(self._targets)
        return f"<RouterHost {self._name} {self._router.state} [{serving}/{wanted} targets]>"
