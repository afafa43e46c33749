"""What the registry needs of others, and which takes its time: tunnels, certificates, routers.

Owns: what is asked of them, and how they fail. Does not own: doing it.

Each is asked outside of any lock: a slow one delays who needs it, and nobody else.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Protocol

from gatewayd.core.model import Replica, UnixAddress


class TunnelError(Exception):
    """A tunnel that cannot be opened; the text is ssh's own."""


class Tunnels(Protocol):
    """One ssh forward for each replica that has a `tunnel`, kept up until it is closed."""

    def address(self, service_key: str, replica_id: str) -> UnixAddress:
        """The local socket of a tunnel, whether it is open or not; the same until `part`."""
        ...

    async def open(self, service_key: str, replica: Replica) -> None:
        """Returns when it forwards. Raises TunnelError, and leaves nothing behind then."""
        ...

    def adopt(self, service_key: str, replica: Replica) -> None:
        """Begin to open, and go on until it is; nobody waits."""
        ...

    async def close(self, service_key: str, replica_id: str) -> None:
        """Nothing of it is left; without one nothing happens."""
        ...

    def part(self, service_key: str, replica_id: str) -> Callable[[], Awaitable[None]]:
        """The tunnel goes on without its replica, which may get another one, at another socket.
        What is returned closes it."""
        ...

    def is_up(self, service_key: str, replica_id: str) -> bool: ...


class Certificates(Protocol):
    async def ensure(self, names: tuple[str, ...]) -> None:
        """Find or get certificates for all of them. Raises CertificateError."""
        ...


class RouterSets(Protocol):
    """The routers' side of a change."""

    def follow(self) -> None:
        """Start and retire routers, and aim each at its service's replicas, as the state says."""
        ...

    async def drop(self, service_key: str, replica_ids: list[str]) -> None:
        """Returns when the service's router sends no new request there; bounded."""
        ...


class NoTunnels:
    """Until something opens them."""

    def address(self, service_key: str, replica_id: str) -> UnixAddress:
        return UnixAddress("/nonexistent")

    async def open(self, service_key: str, replica: Replica) -> None:
        raise TunnelError("tunnels are not available yet: register a `socket` or a `url`")

    def adopt(self, service_key: str, replica: Replica) -> None: ...

    async def close(self, service_key: str, replica_id: str) -> None: ...

    def part(self, service_key: str, replica_id: str) -> Callable[[], Awaitable[None]]:
        return functools.partial(self.close, service_key, replica_id)

    def is_up(self, service_key: str, replica_id: str) -> bool:
        return False
