"""Tunnels as the state wants them: opened before a replica enters it, closed when it is idle.

Owns: which replicas have a tunnel, which of them wait for theirs (`State.connecting`), draining
before a tunnel is closed. Does not own: tunnels (control.tunnels).
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from gatewayd.control.outside import TunnelError, Tunnels
from gatewayd.control.state import State
from gatewayd.control.tasks import Tasks
from gatewayd.core.model import Replica, Service

_log = logging.getLogger(__name__)

Key = tuple[str, str]  # (Service.key, replica id)
Idle = Callable[[Key, float], Awaitable[int]]
"""(replica, seconds) -> requests that still run on it after at most so long."""


@dataclass(eq=False)
class _Retiring:
    replica: Replica
    close: Callable[[], Awaitable[None]]
    task: asyncio.Task[None] = field(init=False)


class Tunneled:
    def __init__(self, state: State, tunnels: Tunnels, idle: Idle, drain_timeout: float) -> None:
        self._state = state
        self._tunnels = tunnels
        self._idle = idle
        self._drain_timeout = drain_timeout
        self._tasks = Tasks()
        self._retiring: dict[Key, _Retiring] = {}
        self._apart: set[_Retiring] = set()  # those whose replica has another tunnel by now

    def __repr__(self) -> str:
        return f"<Tunneled {len(self._state.connecting)} connecting, {len(self._retiring)} retire>"

    async def open(self, service_key: str, replica: Replica) -> Replica:
        """The replica at its tunnel's socket. Raises TunnelError; then nothing is left."""
        key = (service_key, replica.id)
        self._set_apart(key, replica)
        at = replace(replica, address=self._tunnels.address(*key))
        if await self._again(key):
            return at
        await self._tunnels.open(service_key, at)
        return at

    async def close(self, service_key: str, replica: Replica) -> None:
        if replica.tunnel is not None:
            await self._tunnels.close(service_key, replica.id)

    def retire(self, service_key: str, replica: Replica) -> None:
        """Close it when what runs on it has ended, or at the drain deadline; nobody waits."""
        if replica.tunnel is None:
            return
        key = (service_key, replica.id)
        retiring = _Retiring(replica, functools.partial(self._tunnels.close, *key))
        name = f"close the tunnel of {service_key} {replica.id}"
        retiring.task = asyncio.create_task(self._close_idle(key, retiring), name=name)
        self._retiring[key] = retiring

    def follow(self, before: Mapping[str, Service]) -> None:
        """Open and close what a whole new state differs in."""
        had = {(s.key, r.id): r for s in before.values() for r in s.replicas if r.tunnel}
        for key, replica in list(self._tunneled()):
            old = had.pop(key, None)
            if old is None or old.tunnel != replica.tunnel:
                self._adopt(key, replica, old)
            elif old.address != replica.address:  # the file does not know where its socket is
                self._place(key, replica)
        for key, replica in had.items():
            self.retire(key[0], replica)
        self.observe()

    def observe(self) -> bool:
        """Look which ones are up. Whether that has changed."""
        waiting = {key for key, _ in self._tunneled() if not self._tunnels.is_up(*key)}
        changed = waiting != self._state.connecting
        self._state.connecting = waiting
        return changed

    async def aclose(self) -> None:
        await self._tasks.aclose()
        tasks = [each.task for each in (*self._retiring.values(), *self._apart)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _tunneled(self) -> Iterator[tuple[Key, Replica]]:
        for service, replica in self._state.replicas():
            if replica.tunnel is not None:
                yield (service.key, replica.id), replica

    def _adopt(self, key: Key, replica: Replica, old: Replica | None) -> None:
        if old is not None:
            self.retire(key[0], old)
        self._set_apart(key, replica)
        at = self._place(key, replica)
        if key in self._retiring:
            self._tasks.own(self._adopt_after(key, at), f"reopen {key[0]} {key[1]}")
        else:
            self._tunnels.adopt(key[0], at)

    def _place(self, key: Key, replica: Replica) -> Replica:
        service = self._state.services[key[0]]
        at = replace(replica, address=self._tunnels.address(*key))
        replicas = tuple(at if r is replica else r for r in service.replicas)
        self._state.services[key[0]] = replace(service, replicas=replicas)
        return at

    async def _adopt_after(self, key: Key, replica: Replica) -> None:
        known = await self._again(key)
        if not known and self._state.replica(*key) == replica:
            self._tunnels.adopt(key[0], replica)

    def _set_apart(self, key: Key, replica: Replica) -> None:
        """Whoever is reached in another way now does not wait until what runs on the old one has
        ended: his tunnel gets a socket of its own."""
        retiring = self._retiring.get(key)
        if retiring is not None and retiring.replica.tunnel != replica.tunnel:
            retiring.close = self._tunnels.part(*key)
            self._apart.add(self._retiring.pop(key))

    async def _again(self, key: Key) -> bool:
        """A replica that was unregistered a moment ago keeps the tunnel that it had. Whether it has
        one."""
        retiring = self._retiring.get(key)
        if retiring is None:
            return False
        if self._tunnels.is_up(*key):
            retiring.task.cancel()
            await asyncio.gather(retiring.task, return_exceptions=True)
            if self._tunnels.is_up(*key):
                return True
        await asyncio.gather(retiring.task, return_exceptions=True)
        return False

    async def _close_idle(self, key: Key, retiring: _Retiring) -> None:
        try:
            running = await self._idle(key, self._drain_timeout)
            if running:
                apart = retiring in self._apart  # then some of them run on the other one
                how = "%d requests at the most" if apart else "%d requests"
                _log.warning(f"tunnel of replica %s of %s cuts {how}", *key[::-1], running)
            await retiring.close()
        except TunnelError as error:
            _log.warning("tunnel of replica %s of %s: %s", *key[::-1], error)
        finally:
            self._apart.discard(retiring)
            if self._retiring.get(key) is retiring:
                del self._retiring[key]
