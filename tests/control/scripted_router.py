"""A router that does what a test says, and a host that drives it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from gatewayd.control.router_host import Pace, RouterHost
from gatewayd.core.model import RouterSpec, RouterTraits, TcpAddress
from gatewayd.net.process import State
from gatewayd.routers.base import Router, RouterError, SyncState, Target, port_pool

SPEC = RouterSpec("scripted", policy="fair")
STATIC = RouterTraits(allowed_paths=("/v1/",))


A, B = Target("a", "http://127.0.0.1:10001"), Target("b", "http://127.0.0.1:10002")


FAST = Pace(
    sync_every=0.2,
    settle_poll=(0.005, 0.01),
    retry=0.01,
    probe_every=0.02,
    probe_timeout=0.02,
    first_targets=0.2,
    tidy_every=0.05,
)


PORTS = port_pool(20000 + os.getpid() * 97 % 4800, 24999)


class ScriptedRouter(Router):
    """Does what the test says; `held` URLs are not served, `stuck` ones do not leave."""

    def __init__(self) -> None:
        self.run = 0
        self.up = False
        self.answers_probes = True
        self.broken: str | None = None
        self.held: set[str] = set()
        self.stuck: set[str] = set()
        self.present: list[Target] = []
        self.passes = 0
        self.in_sync = False
        self.replaced: list[str] = []
        self.tidied = 0
        self.stopped = False

    def start(self, on_up: Callable[[], None], on_down: Callable[[], None]) -> None:
        self.on_up, self.on_down = on_up, on_down

    async def ready(self, timeout: float) -> bool:
        return self.up

    def come(self) -> None:
        self.run += 1
        self.up = True
        self.answers_probes = True
        self.present = []
        self.on_up()

    def go(self) -> None:
        self.up = False
        self.on_down()

    async def sync(self, targets: Sequence[Target]) -> SyncState:
        assert not self.in_sync  # never two at once
        self.in_sync = True
        await asyncio.sleep(0)
        self.in_sync = False
        self.passes += 1
        if self.broken is not None:
            raise RouterError(self.broken)
        staying = [t for t in self.present if t in targets or t.url in self.stuck]
        self.present = staying + [t for t in targets if t not in staying]
        serving = {t.id for t in self.present if t in targets and t.url not in self.held}
        settled = serving == {t.id for t in targets} and len(self.present) == len(targets)
        return SyncState(frozenset(serving), frozenset(t.url for t in self.present), settled)

    async def health(self) -> bool:
        if not self.answers_probes:
            await asyncio.sleep(60)
        return self.up

    def replace(self, reason: str) -> None:
        self.replaced.append(reason)
        self.go()

    async def stop(self) -> None:
        self.stopped = True

    async def tidy(self) -> None:
        self.tidied += 1

    @property
    def endpoint(self) -> TcpAddress | None:
        return TcpAddress("127.0.0.1", 20000 + self.run) if self.up else None

    @property
    def metrics_address(self) -> TcpAddress | None:
        return None

    @property
    def traits(self) -> RouterTraits:
        return RouterTraits(request_headers=((b"key", b"%d" % self.run),))

    @property
    def state(self) -> State:
        return "ready" if self.up else "restarting"

    @property
    def restarts(self) -> int:
        return max(0, self.run - 1)


@asynccontextmanager
async def hosting(
    spec: RouterSpec = SPEC, log_dir: Path = Path("unused"), pace: Pace = FAST
) -> AsyncIterator[tuple[RouterHost, list[TcpAddress | None]]]:
    """A host and the endpoints it had whenever it said that something changed."""
    changes: list[TcpAddress | None] = []
    host = RouterHost(
        "main/llama",
        spec,
        ports=PORTS,
        log_dir=log_dir,
        on_change=lambda: changes.append(host.endpoint),
        pace=pace,
    )
    await host.start()
    try:
        yield host, changes
    finally:
        await host.aclose()
