"""Tunnels as the state wants them: opened before a replica enters it, closed when it is idle.

Owns: which replicas have a tunnel, which of them wait for theirs (`State.connecting`), draining
before a tunnel is closed. Does not own: tunnels (control.tunnels).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import replace

from gatewayd.control.outside import TunnelError, Tunnels
from gatewayd.control.state import State
from gatewayd.control.tasks import Tasks
from gatewayd.core.model import Replica, Service

_log = logging.getLogger(__name__)

Key = tuple[str, str]  # (Service.key, replica id)
Idle = Callable[[Key, float], Awaitable[int]]
"""(replica, seconds) -> requests that still run on it after at most so long."""


class Tunneled:
    def __init__(self, state: State, tunnels: Tunnels, idle: Idle, drain_timeout: float) -> None:
        self._state = state
        self._tunnels = tunnels
        self._idle = idle
        self._drain_timeout = drain_timeout
        self._tasks = Tasks()
        self._retiring: dict[Key, tuple[Replica, asyncio.Task[None]]] = {}

    def __repr__(self) -> str:
        return f"<Tunneled {len(self._state.connecting)} connecting, {len(self._retiring)} retire>"

    async def open(self, service_key: str, replica: Replica) -> Replica:
        """The replica at its tunnel's socket. Raises TunnelError; then nothing is left."""
        key = (service_key, replica.id)
        at = replace(replica, address=self._tunnels.address(*key))
        if await self._again(key, replica):
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
        name = f"close the tunnel of {service_key} {replica.id}"
        task = asyncio.create_task(self._close_idle(key), name=name)
        self._retiring[key] = (replica, task)

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
        tasks = [task for _, task in self._retiring.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _tunneled(self) -> Iterator[tuple[Key, Replica]]:
        for service, replica in self._state.replicas():
            if replica.tunnel is not None:
                yield (service.key, replica.id), replica

    def _adopt(self, key: Key, replica: Replica, old: Replica | None) -> None:
        at = self._place(key, replica)
        if old is not None:  # another way to the same replica: the old one is closed first
            self.retire(key[0], old)
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
        known = await self._again(key, replica)
        if not known and self._state.replica(*key) == replica:
            self._tunnels.adopt(key[0], replica)

    async def _again(self, key: Key, replica: Replica) -> bool:
        """A replica that was unregistered a moment ago keeps the tunnel that it had; one that is
        reached in another way now waits until the old one is closed. Whether it has a tunnel."""
        retiring = self._retiring.get(key)
        if retiring is None:
            return False
        old, task = retiring
        if old.tunnel == replica.tunnel and self._tunnels.is_up(*key):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            if self._tunnels.is_up(*key):
                return True
        await asyncio.gather(task, return_exceptions=True)
        return False

    async def _close_idle(self, key: Key) -> None:
        try:
            running = await self._idle(key, self._drain_timeout)
            if running:
                _log.warning("tunnel of replica %s of %s cuts %d requests", *key[::-1], running)
            await self._tunnels.close(*key)
        except TunnelError as error:
            _log.warning("tunnel of replica %s of %s: %s", *key[::-1], error)
        finally:
            if key in self._retiring and self._retiring[key][1] is asyncio.current_task():
                del self._retiring[key]
