"""The ssh tunnels of all replicas that have one.

Owns: which there are, how many connect at a time. Does not own: one of them (control.tunnel), which
ones there ought to be (control.tunneled).
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Final

from gatewayd.control.tunnel import Tunnel
from gatewayd.control.tunnel_files import TunnelFolder
from gatewayd.core.model import Replica, UnixAddress

# A host that comes back, or a network, is met by so many ssh at a time; each takes some 80 ms of a
# core. At the start of the gateway everybody waits, and more of them wait for networks than work.
RECONNECTS_AT_A_TIME: Final = 8
FIRST_AT_A_TIME: Final = 32
_REMEMBERED: Final = 256  # names of replicas that may be about to open a tunnel


class SshTunnels:
    """`on_change` is called whenever one has come up or broken."""

    def __init__(self, state_dir: str, on_change: Callable[[], None]) -> None:
        self._folder = TunnelFolder(state_dir)
        self._on_change = on_change
        self._tunnels: dict[tuple[str, str], Tunnel] = {}
        self._apart: dict[Tunnel, tuple[str, str]] = {}
        self._parted: dict[tuple[str, str], int] = {}  # how often, the latest last
        self._first = asyncio.Semaphore(FIRST_AT_A_TIME)
        self._again = asyncio.Semaphore(RECONNECTS_AT_A_TIME)

    def __repr__(self) -> str:
        up = sum(tunnel.up for tunnel in self._tunnels.values())
        return f"<SshTunnels {up} of {len(self._tunnels)} up>"

    def address(self, service_key: str, replica_id: str) -> UnixAddress:
        return self._folder.address(service_key, self._name(service_key, replica_id))

    async def open(self, service_key: str, replica: Replica) -> None:
        """Returns when it forwards. Raises TunnelError, and leaves nothing behind then."""
        key = (service_key, replica.id)
        await self.close(*key)
        tunnel = self._tunnels[key] = self._make(service_key, replica)
        try:
            await tunnel.open()
        except BaseException:
            if self._tunnels.get(key) is tunnel:
                del self._tunnels[key]
            raise

    def adopt(self, service_key: str, replica: Replica) -> None:
        """Begin to open, and go on until it is; nobody waits."""
        key = (service_key, replica.id)
        if key not in self._tunnels:
            self._tunnels[key] = self._make(service_key, replica)
            self._tunnels[key].adopt()

    async def close(self, service_key: str, replica_id: str) -> None:
        """Nothing of it is left; without one nothing happens."""
        tunnel = self._tunnels.pop((service_key, replica_id), None)
        if tunnel is not None:
            await tunnel.aclose()

    def part(self, service_key: str, replica_id: str) -> Callable[[], Awaitable[None]]:
        """It goes on without its replica, which may get another one, at another socket. What is
        returned closes it."""
        key = (service_key, replica_id)
        self._parted[key] = self._parted.pop(key, 0) + 1
        tunnel = self._tunnels.pop(key, None)
        if tunnel is not None:
            self._apart[tunnel] = key
        self._forget()
        return functools.partial(self._close_apart, tunnel)

    async def _close_apart(self, tunnel: Tunnel | None) -> None:
        if tunnel is not None:
            await tunnel.aclose()
            self._apart.pop(tunnel, None)

    def _forget(self) -> None:
        """Names that nobody has any more: those of replicas that went long ago."""
        taken = {*self._tunnels, *self._apart.values()}
        for key in list(self._parted)[:-_REMEMBERED]:
            if key not in taken:
                del self._parted[key]

    def is_up(self, service_key: str, replica_id: str) -> bool:
        tunnel = self._tunnels.get((service_key, replica_id))
        return tunnel is not None and tunnel.up

    def fault(self, service_key: str, replica_id: str) -> str | None:
        """Why it is not up, in ssh's words."""
        tunnel = self._tunnels.get((service_key, replica_id))
        return None if tunnel is None else tunnel.fault

    async def aclose(self) -> None:
        tunnels = [*self._tunnels.values(), *self._apart]
        self._tunnels.clear()
        self._apart.clear()
        await asyncio.gather(*(tunnel.aclose() for tunnel in tunnels))
        self._folder.remove()

    def _make(self, service_key: str, replica: Replica) -> Tunnel:
        assert replica.tunnel is not None
        return Tunnel(
            f"{replica.id} of {service_key}",
            replica.tunnel,
            self._folder.files(service_key, self._name(service_key, replica.id)),
            first=self._first,
            again=self._again,
            on_change=self._on_change,
        )

    def _name(self, service_key: str, replica_id: str) -> str:
        """Of its files: no id of a replica holds a space."""
        parted = self._parted.get((service_key, replica_id))
        return replica_id if parted is None else f"{replica_id} {parted}"
