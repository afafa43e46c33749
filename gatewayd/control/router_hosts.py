"""The routers there are: one for each service that asks for one, aimed at its replicas.

Owns: starting and retiring them as the state says, their targets, their names as endpoints.
Does not own: one router's life (control.router_host), bridge ports (control.publisher).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from gatewayd.control.compiler import RouterView
from gatewayd.control.router_host import RouterHost
from gatewayd.control.state import State
from gatewayd.core.model import RouterSpec, Service
from gatewayd.core.snapshot import BridgePort
from gatewayd.routers.base import Target

_log = logging.getLogger(__name__)

DROP_TIMEOUT_S: Final = 5.0
_RETIRE_POLL_S: Final = 0.25
_RETIRE_QUIET_POLLS: Final = 4  # a worker may hold a snapshot that still names it

# (Service.key, spec, on_change) -> a host that is not started yet
MakeHost = Callable[[str, RouterSpec, Callable[[], None]], RouterHost]


@dataclass(slots=True)
class _Entry:
    spec: RouterSpec
    host: RouterHost
    generation: int
    endpoint_ids: set[str] = field(default_factory=set)  # every name it was published under
    starting: asyncio.Task[None] | None = None


class RouterHosts:
    """`port_of` gives a replica's bridge port as the bridge has acknowledged it; `load` the
    requests in flight on an endpoint; `on_change` is called when a router can or cannot be used any
    more."""

    def __init__(
        self,
        state: State,
        make: MakeHost,
        *,
        port_of: Callable[[str, str], BridgePort | None],
        load: Callable[[tuple[str, str]], int],
        on_change: Callable[[], None],
    ) -> None:
        self._state = state
        self._make = make
        self._port_of = port_of
        self._load = load
        self._on_change = on_change
        self._entries: dict[str, _Entry] = {}
        self._generation = 0
        self._retiring: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<RouterHosts {sorted(self._entries)}, {len(self._retiring)} retiring>"

    def __iter__(self) -> Iterator[tuple[str, RouterHost]]:
        for key, entry in self._entries.items():
            yield key, entry.host

    def view(self, service_key: str) -> RouterView | None:
        entry = self._entries.get(service_key)
        if entry is None:
            return None
        # Without a target it would refuse, and each request would have gone there in vain.
        address = entry.host.endpoint if entry.host.serving else None
        endpoint_id = ""
        if address is not None:
            # Another port is another endpoint: what workers know of the old one is of no use.
            endpoint_id = f"@router-{entry.generation}:{address.port}"
            entry.endpoint_ids.add(endpoint_id)
        return RouterView(endpoint_id, address, entry.host.traits, entry.host.lacks)

    def status(self, service_key: str) -> dict[str, Any] | None:
        entry = self._entries.get(service_key)
        return None if entry is None else entry.host.status()

    def follow(self) -> None:
        """Start and retire routers, and aim each at its service's replicas, as the state says."""
        wanted = {s.key: s for s in self._state.services.values() if s.router is not None}
        for key, entry in list(self._entries.items()):
            service = wanted.get(key)
            if service is None or service.router != entry.spec:
                self._retire(key, self._entries.pop(key))
        for key, service in wanted.items():
            entry = self._entries.get(key) or self._start(service)
            entry.host.set_targets(self._targets(service))

    async def drop(self, service_key: str, replica_ids: list[str]) -> None:
        """Returns when the service's router sends no new request there; bounded."""
        entry = self._entries.get(service_key)
        if entry is not None and not await entry.host.drop(replica_ids, DROP_TIMEOUT_S):
            names = ", ".join(replica_ids)
            _log.warning("router of %s still has %s after %g s", service_key, names, DROP_TIMEOUT_S)

    async def synced(self, timeout: float) -> None:
        """Returns when every router that is up has the targets it was last given; bounded."""
        hosts = [entry.host for entry in self._entries.values() if entry.host.endpoint is not None]
        await asyncio.gather(*(host.synced(timeout) for host in hosts))

    async def aclose(self) -> None:
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        entries, self._entries = self._entries, {}
        await asyncio.gather(*(_close(entry) for entry in entries.values()))

    def _targets(self, service: Service) -> list[Target]:
        targets: list[Target] = []
        for replica in service.replicas:
            key = (service.key, replica.id)
            if replica.draining or key in self._state.unreachable or key in self._state.connecting:
                continue
            port = self._port_of(service.key, replica.id)
            if port is None:
                continue
            url = f"http://127.0.0.1:{port.port}"
            if service.router is None or not service.router.pd_disaggregation:
                targets.append(Target(replica.id, url))
                continue
            role = self._state.roles.get((service.key, replica.id))
            # Not before the bridge knows as much: it makes an address of ours that of the replica.
            if role is not None and role.name != "regular" and role == port.role:
                meet = port.port if role.name == "prefill" else None
                targets.append(Target(replica.id, url, role.name, meet))
        return targets

    def _start(self, service: Service) -> _Entry:
        assert service.router is not None
        self._generation += 1
        host = self._make(service.key, service.router, self._on_change)
        entry = self._entries[service.key] = _Entry(service.router, host, self._generation)
        entry.starting = asyncio.create_task(host.start(), name=f"start router of {service.key}")
        return entry

    def _retire(self, key: str, entry: _Entry) -> None:
        task = asyncio.create_task(self._end(key, entry), name=f"retire router of {key}")
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _end(self, key: str, entry: _Entry) -> None:
        """What runs through a router that is not wanted any more ends whole."""
        try:
            quiet = 0
            while quiet < _RETIRE_QUIET_POLLS and entry.host.endpoint is not None:
                await asyncio.sleep(_RETIRE_POLL_S)
                busy = any(self._load((key, endpoint_id)) for endpoint_id in entry.endpoint_ids)
                quiet = 0 if busy else quiet + 1
        finally:
            await _close(entry)


async def _close(entry: _Entry) -> None:
    if entry.starting is not None:
        entry.starting.cancel()
        await asyncio.gather(entry.starting, return_exceptions=True)
    await entry.host.aclose()
