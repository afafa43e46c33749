"""What the data plane is told about the state: upstreams for workers, ports for the bridge.

Owns: leases of what is compiled in, which routers are used at this moment. Does not own: the host
table (core.snapshot), delivery (control.publisher).
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Final, Literal, Protocol

from gatewayd.control.leases import IndexLeases, LeaseError, PortLeases
from gatewayd.control.state import State
from gatewayd.core.model import (
    Endpoint,
    Replica,
    Role,
    RouterTraits,
    Service,
    TcpAddress,
    Upstream,
)
from gatewayd.core.reply import NO_ROUTER
from gatewayd.core.snapshot import BridgePort, Snapshot, Target, compile_snapshot

_log = logging.getLogger(__name__)

_ROUTER_REUSE_S: Final = 30.0  # our own child: its keep-alive is known to be longer


@dataclass(frozen=True, slots=True)
class RouterView:
    """A service's router as far as requests are concerned. `address` is None while it cannot
    serve: not up yet, hung, or without a target. `lacks` are roles without which it cannot."""

    endpoint_id: str
    address: TcpAddress | None
    traits: RouterTraits
    lacks: tuple[Role, ...] = ()


class Routers(Protocol):
    def view(self, service_key: str) -> RouterView | None:
        """None for a service that asks for no router."""
        ...


@dataclass(frozen=True, slots=True)
class _Compiled:
    """What a service was compiled to, and of what."""

    service: Service
    view: RouterView | None
    connecting: frozenset[str]
    bare: Service  # as it is published
    keys: tuple[tuple[str, str], ...]  # of the endpoints that it holds
    upstream: Upstream


class Compiler:
    def __init__(
        self,
        state: State,
        indexes: IndexLeases,
        ports: PortLeases,
        routers: Routers,
        *,
        column: Callable[[Service], int] = lambda service: 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._began = int(time.time())  # when the models of the file were made, as far as we know
        self._state = state
        self._indexes = indexes
        self._ports = ports
        self._routers = routers
        self._column = column
        self._clock = clock
        self._last_ports: dict[int, BridgePort] = {}
        self._compiled: dict[str, _Compiled] = {}  # by Service.key, of the last snapshot
        self._targets: dict[str, Target] = {}  # the same

    def snapshot(self, version: int) -> Snapshot:
        services = list(self._state.services.values())
        compiled = {service.key: self._compile(service) for service in services}
        self._compiled = compiled
        wanted = {key for entry in compiled.values() for key in entry.keys}
        self._indexes.keep(wanted)
        snapshot = compile_snapshot(
            version,
            [entry.bare for entry in compiled.values()],
            {key: entry.upstream for key, entry in compiled.items()},
            auth=self._state.judge(),
            trusted_proxies=self._state.trusted_proxies,
            project=self._state.project,
            entrypoints=self._state.all_entrypoints(),
            models=self._state.all_models(self._began),
            columns={service.key: self._column(service) for service in services},
            before=self._targets,
        )
        self._targets = {target.service.key: target for target in snapshot.targets.values()}
        return snapshot

    def check(self) -> None:
        """Raises what `snapshot` would, of services that have changed since the last one. Such as
        LeaseError; the next snapshot frees what was leased in vain."""
        changed = []
        for service in self._state.services.values():
            known = self._compiled.get(service.key)
            if known is None or known.service is not service:
                changed.append(self._compile(service))
        compile_snapshot(
            0,
            [entry.bare for entry in changed],
            {entry.service.key: entry.upstream for entry in changed},
            auth=self._state.judge(),
            trusted_proxies=self._state.trusted_proxies,
        )

    def _compile(self, service: Service) -> _Compiled:
        """As last time, if nothing that it depends on has changed."""
        key = service.key
        view = self._routers.view(key)
        connecting = frozenset(
            r.id for r in service.replicas if (key, r.id) in self._state.connecting
        )
        known = self._compiled.get(key)
        if (
            known is not None
            and known.service is service
            and (known.view, known.connecting) == (view, connecting)
        ):
            return known
        keys = [(key, replica.id) for replica in service.replicas]
        if view is not None and view.address is not None:
            keys.append((key, view.endpoint_id))
        # The data plane dials endpoints; keys of tunnels must not even get near it.
        bare = replace(service, replicas=())
        if known is not None and known.bare == bare:
            bare = known.bare
        upstream = self._upstream(service, view, connecting)
        return _Compiled(service, view, connecting, bare, tuple(keys), upstream)

    def _upstream(
        self, service: Service, view: RouterView | None, connecting: Collection[str]
    ) -> Upstream:
        endpoints = tuple(
            self._endpoint(service, replica)
            for replica in service.replicas
            if not replica.draining and replica.id not in connecting
        )
        coming = not endpoints and any(
            not r.draining and r.id in connecting for r in service.replicas
        )
        if view is None:
            return Upstream(endpoints, service.balance, coming=coming)
        alone = service.router is None or not service.router.pd_disaggregation
        if view.address is None or not endpoints:
            refusal = "" if alone or not endpoints else _refusal(view)
            return Upstream(
                endpoints,
                service.balance,
                None,
                view.traits,
                refusal=refusal,
                past_router=alone,
                coming=coming,
            )
        router = Endpoint(
            id=view.endpoint_id,
            address=view.address,
            index=self._indexes.lease((service.key, view.endpoint_id)),
            reuse_s=_ROUTER_REUSE_S,
        )
        steers = service.router is not None and service.router.steers(view.traits)
        mode: Literal["steer", "through"] = "steer" if steers else "through"
        return Upstream(endpoints, service.balance, router, view.traits, mode, past_router=alone)

    def _endpoint(self, service: Service, replica: Replica) -> Endpoint:
        index = self._indexes.lease((service.key, replica.id))
        return Endpoint(replica.id, replica.address, index, replica.id)

    # --- bridge ports --------------------------------------------------------------------------

    def bridge_ports(self) -> dict[int, BridgePort]:
        """Ports of today's replicas, and of gone ones that still answer somebody."""
        now = self._clock()
        current: dict[int, BridgePort] = {}
        wanted = set()
        for service, replica in self._state.replicas():
            if (view := self._routers.view(service.key)) is None:
                continue
            key = (service.key, replica.id)
            wanted.add(key)
            try:
                port = self._ports.lease(key, now).port
            except LeaseError as error:
                _log.error("%s: replica %s: %s", service.key, replica.id, error)
                continue
            current[port] = BridgePort(
                port=port,
                endpoint=self._endpoint(service, replica),
                service=service.key,
                idle_timeout=service.timeouts.idle,
                first_byte_timeout=service.timeouts.first_byte,
                connect_timeout=service.timeouts.connect,
                token_header=view.traits.token_header,
                peer_fields=view.traits.peer_fields,
                peer_host=replica.peer_host,
                role=self._state.roles.get(key),
            )
        self._ports.keep(wanted)
        for port in self._ports.by_port():
            if port in self._last_ports:
                current.setdefault(port, self._last_ports[port])
        self._last_ports = current
        return current

    def port(self, service_key: str, replica_id: str) -> int | None:
        lease = self._ports.get((service_key, replica_id))
        return None if lease is None else lease.port

    def port_sockets(self) -> dict[int, socket.socket]:
        return {port: lease.sock for port, lease in self._ports.by_port().items()}

    # --- what lingers --------------------------------------------------------------------------

    @property
    def lingering(self) -> bool:
        return bool(self._indexes.lingering or self._ports.lingering)

    def reap(self) -> bool:
        """Free what nobody uses any more. Whether a port went, which the bridge has to hear of."""
        now = self._clock()
        gone = self._ports.reap(self._indexes.load, now)  # first: it asks for their load
        self._indexes.reap(now)
        return bool(gone)


def _refusal(view: RouterView) -> str:
    if not view.lacks:
        return NO_ROUTER
    return f"No {' and no '.join(view.lacks)} replica of this service is ready"
