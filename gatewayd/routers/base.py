"""What a router is to the rest of gatewayd, and how a plug-in for one is found.

Owns: `Router`, `SubprocessRouter`, `Plugin`, `load`.
Does not own: when to sync and when to give up on one (control.router_host), any router's
peculiarities (its own package below gatewayd.routers).
"""

from __future__ import annotations

import asyncio
import difflib
import importlib
import logging
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from gatewayd.core.model import Address, ReplicaRole, Role, RouterSpec, RouterTraits, TcpAddress
from gatewayd.net.ports import PortPool
from gatewayd.net.process import Child, Command, Exit, State, SupervisedProcess

log = logging.getLogger(__name__)

LOOPBACK: Final = "127.0.0.1"
METRICS_OFFSET: Final = 10_000  # a router's metrics port lies so far above its own
_READY_POLL: Final = 0.05


class RouterError(Exception):
    """The router could not be asked, or refused; asking again later may work."""


class UnknownRouterError(ValueError):
    """No plug-in has that name; the message names those there are."""


@dataclass(frozen=True, slots=True)
class Target:
    """A replica as its router shall see it: `id` is the replica's, `url` the bridge's.

    `role` is None where replicas have none; a prefill's `bootstrap_port` is the bridge's too.
    """

    id: str
    url: str
    role: Role | None = None
    bootstrap_port: int | None = None


@dataclass(frozen=True, slots=True)
class SyncState:
    """What one pass of `Router.sync` left behind.

    `serving` are ids of targets that take requests; `present` are all URLs the router has or may
    yet get, wanted or not. Unless `settled`, another pass soon will get further.
    """

    serving: frozenset[str] = frozenset()
    present: frozenset[str] = frozenset()
    settled: bool = True


class Router(ABC):
    """A program or service that chooses among the replicas of one gatewayd service."""

    @abstractmethod
    def start(self, on_up: Callable[[], None], on_down: Callable[[], None]) -> None:
        """Begin, and go on beginning after failures until `stop`. The callbacks tell when it
        answers and when it has gone; endpoint and traits are those of this time up."""

    @abstractmethod
    async def ready(self, timeout: float) -> bool:
        """Wait until it answers."""

    @abstractmethod
    async def sync(self, targets: Sequence[Target]) -> SyncState:
        """One pass towards exactly these targets; never two at once. Raises RouterError."""

    @abstractmethod
    async def health(self) -> bool:
        """One liveness probe; the caller bounds its time."""

    @abstractmethod
    def replace(self, reason: str) -> None:
        """It hangs: end it at once, and begin again."""

    @abstractmethod
    async def stop(self) -> None:
        """End it for good, in bounded time."""

    async def tidy(self) -> None:
        """Called now and then while it runs, for log files and the like."""
        return

    @property
    @abstractmethod
    def endpoint(self) -> TcpAddress | None:
        """Where it takes requests; None while it is down."""

    @property
    @abstractmethod
    def metrics_address(self) -> TcpAddress | None: ...

    @property
    @abstractmethod
    def traits(self) -> RouterTraits:
        """With what is particular to this time up, such as a key."""

    @property
    @abstractmethod
    def state(self) -> State: ...

    @property
    @abstractmethod
    def restarts(self) -> int: ...

    @property
    def pid(self) -> int | None:
        return None

    @property
    def last_words(self) -> tuple[str, ...]:
        """The newest lines it printed, for a human who asks why it is down."""
        return ()

    @property
    def last_exit(self) -> str | None:
        return None


class SubprocessRouter(Router):
    """A router that runs as a child process on a loopback port of ours.

    A subclass says what to run (`command`) and how to know it (`is_ours`).
    """

    def __init__(
        self, name: str, *, ports: PortPool, ready_timeout: float, stop_timeout: float
    ) -> None:
        self.name = name
        self._ports = ports
        self._port: int | None = None
        self._up = False
        self._on_up: Callable[[], None] = _nothing
        self._on_down: Callable[[], None] = _nothing
        self._process = SupervisedProcess(
            name,
            self._next_command,
            ready=self._until_ready,
            ready_timeout=ready_timeout,
            stop_timeout=stop_timeout,
            first_delay=1.0,
            max_delay=30.0,
            on_up=self._came_up,
            on_exit=self._went_down,
            on_line=lambda line: log.debug("%s: %s", name, line),
        )

    @abstractmethod
    def command(self, port: int) -> Command:
        """The command of a new run, with a new key if it has one. OSError: cannot be started."""

    @abstractmethod
    async def is_ours(self, port: int) -> bool:
        """Whether what answers on `port` is ready, and is the process of the last `command`.
        A RouterError says that it is somebody else."""

    def start(self, on_up: Callable[[], None], on_down: Callable[[], None]) -> None:
        self._on_up, self._on_down = on_up, on_down
        self._process.start()

    async def ready(self, timeout: float) -> bool:
        return await self._process.wait_ready(timeout)

    def replace(self, reason: str) -> None:
        self._process.kill(reason)

    async def stop(self) -> None:
        self._up = False
        try:
            await self._process.aclose()
        finally:
            self._release()

    @property
    def endpoint(self) -> TcpAddress | None:
        if not self._up or self._port is None:
            return None
        return TcpAddress(LOOPBACK, self._port)

    @property
    def metrics_address(self) -> TcpAddress | None:
        if not self._up or self._port is None:
            return None
        return TcpAddress(LOOPBACK, self._port + METRICS_OFFSET)

    @property
    def state(self) -> State:
        return self._process.state

    @property
    def restarts(self) -> int:
        return self._process.restarts

    @property
    def pid(self) -> int | None:
        return self._process.pid

    @property
    def last_words(self) -> tuple[str, ...]:
        return self._process.words

    @property
    def last_exit(self) -> str | None:
        return str(self._process.last_exit) if self._process.last_exit is not None else None

    def _next_command(self, start: int) -> Command:
        # Another port each time: whatever made the last start fail may be sitting on that one.
        self._release()
        self._port = self._ports.take()
        return self.command(self._port)

    async def _until_ready(self, child: Child) -> None:
        port = self._port
        assert port is not None
        while not await self.is_ours(port):  # noqa: ASYNC110 - another process has no event
            await asyncio.sleep(_READY_POLL)

    def _came_up(self, child: Child) -> None:
        log.info("%s is ready on port %s (pid %d)", self.name, self._port, child.pid)
        self._up = True
        self._on_up()

    def _went_down(self, end: Exit) -> None:
        self._up = False
        self._on_down()

    def _release(self) -> None:
        if self._port is not None:
            self._ports.release(self._port)
            self._port = None


AskRole = Callable[[Address], Awaitable[ReplicaRole]]


class Create(Protocol):
    def __call__(
        self, name: str, spec: RouterSpec, *, ports: PortPool, log_dir: Path
    ) -> Router: ...


@dataclass(frozen=True, slots=True)
class Plugin:
    """What a package below gatewayd.routers offers, under the name PLUGIN.

    `check` gives every fault of a spec, each as `key: what is wrong` with the key relative to
    the router's table; `traits` what holds without a running router. `ask_role` asks a replica
    what it does; a RouterError says that it does not tell (yet). None: this router knows no roles.
    """

    check: Callable[[RouterSpec], list[str]] = field(repr=False)
    traits: Callable[[RouterSpec], RouterTraits] = field(repr=False)
    create: Create = field(repr=False)
    ask_role: AskRole | None = field(default=None, repr=False)


def available() -> tuple[str, ...]:
    """The types of router there are plug-ins for."""
    here = str(Path(__file__).parent)
    return tuple(sorted(m.name for m in pkgutil.iter_modules([here]) if m.ispkg))


def load(type_name: str) -> Plugin:
    """The plug-in of that name. Raises UnknownRouterError."""
    known = available()
    if type_name not in known:
        near = difflib.get_close_matches(type_name, known, n=1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise UnknownRouterError(
            f"there is no router of type {type_name!r}{hint or '.'} Available: {', '.join(known)}"
        )
    plugin = importlib.import_module(f"gatewayd.routers.{type_name}").PLUGIN
    assert isinstance(plugin, Plugin)
    return plugin


def port_pool(first: int, last: int, *, avoid: Callable[[], Collection[int]] = tuple) -> PortPool:
    """The ports that router processes share; both ends included."""
    return PortPool(first, last, also=METRICS_OFFSET, avoid=avoid)


def _nothing() -> None:
    return None
