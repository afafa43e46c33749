"""What a gateway file means once it is read: one frozen `Config`, handed down in typed parts.

Owns: the shape. Does not own: reading it (config.load), what its parts do (core.model).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gatewayd.core.certificate import CertificateSource
from gatewayd.core.demand import Count
from gatewayd.core.entrypoint import Entrypoint
from gatewayd.core.model import Address, Auth, DstackAuth, Limits, Log, RouterSpec, Service


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where something listens: TCP, a Unix socket, or a socket handed over by systemd."""

    address: Address | None
    fd_name: str | None = None  # `fd:NAME`: the socket systemd passed under that name

    def __str__(self) -> str:
        return f"fd:{self.fd_name}" if self.address is None else str(self.address)


@dataclass(frozen=True, slots=True)
class Listen:
    http: tuple[ListenAddress, ...]
    admin: Address | ListenAddress  # the latter for `fd:NAME` alone
    metrics: Address | ListenAddress | None = None
    https: tuple[ListenAddress, ...] = ()


@dataclass(frozen=True, slots=True)
class PortRange:
    """Loopback ports, both ends included."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Ports:
    bridge: PortRange = PortRange(10001, 11999)
    router: PortRange = PortRange(20000, 24999)  # a router's metrics port lies 10000 above


@dataclass(frozen=True, slots=True)
class Config:
    """The effective configuration. Services are complete: every default is filled in."""

    source: str  # the file's absolute path; "" when there is none
    name: str
    project: str
    domain: str | None
    router: RouterSpec | None
    listen: Listen
    workers: int
    state_dir: str
    run_dir: str | None
    trusted_proxies: tuple[str, ...]  # CIDRs in canonical form
    log: Log
    auth: Auth | None
    limits: Limits
    drain_timeout: float
    ports: Ports
    services: tuple[Service, ...]
    upgrade_drain_timeout: float = 3600.0
    model_endpoint: Entrypoint | None = None
    certificate: CertificateSource | None = None
    no_auth: bool = False  # the file says `auth: {type: none}`
    stats_count: Count = "running"
    debug_headers: bool = False
    import_state: str | None = None  # another gateway's state file, read when there is none here
    import_keys: str = "/home/ubuntu/.ssh/projects"
    cloud: tuple[tuple[str, str], ...] = field(default=())  # backend, region, ... only shown

    @property
    def registered_auth(self) -> Auth | None:
        """Who judges tokens of registered services. One whose services all come from a dstack
        server need not say so: unless somebody else is named, it is asked."""
        return None if self.no_auth else self.auth or DstackAuth()
