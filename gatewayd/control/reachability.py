"""Replicas whose address refuses connections: found by a report, cleared by a probe.

Owns: the suspicion, the probes, `State.unreachable`. Does not own: ejection (core.balancer does
it per worker, within milliseconds), a router's targets (control.router_hosts follows the state).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from gatewayd.control.state import State
from gatewayd.core.model import Address, UnixAddress

_log = logging.getLogger(__name__)

PROBE_EVERY_S: Final = 0.5
PROBES_AT_A_TIME: Final = 64  # of 2,000 after a start: else nobody else had a turn for 0.3 s
_PROBE_TIMEOUT_S: Final = 2.0


class Reachability:
    """`on_change` is called after each change of `State.unreachable`."""

    def __init__(self, state: State, on_change: Callable[[], None]) -> None:
        self._state = state
        self._on_change = on_change
        self._watches: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._probes = asyncio.Semaphore(PROBES_AT_A_TIME)
        self._seen: set[tuple[str, str, Address]] = set()

    def __repr__(self) -> str:
        return f"<Reachability {len(self._state.unreachable)} unreachable>"

    def look_at_new(self) -> None:
        """Replicas nobody has asked yet: a router must not be led to one that is not there."""
        now = {
            (service.key, r.id, r.address)
            for service, r in self._state.replicas()
            if (service.key, r.id) not in self._state.connecting  # looked at when it has come up
        }
        for service_key, replica_id, _ in now - self._seen:
            self.suspect(service_key, replica_id)
        self._seen = now

    def suspect(self, service_key: str, replica_id: str) -> None:
        """Look whether it accepts connections, and until when it does not."""
        key = (service_key, replica_id)
        if key in self._watches or self._state.replica(service_key, replica_id) is None:
            return
        task = asyncio.create_task(self._watch(key), name=f"probe {service_key} {replica_id}")
        self._watches[key] = task
        task.add_done_callback(lambda _: self._watches.pop(key, None))

    async def aclose(self) -> None:
        self._on_change = lambda: None
        watches = list(self._watches.values())
        for task in watches:
            task.cancel()
        await asyncio.gather(*watches, return_exceptions=True)

    async def _watch(self, key: tuple[str, str]) -> None:
        service_key, replica_id = key
        try:
            while (replica := self._state.replica(*key)) is not None:
                if key in self._state.connecting:
                    break  # whoever opens its tunnel tells when
                async with self._probes:
                    fault = await probe(replica.address)
                if self._state.replica(*key) is None or key in self._state.connecting:
                    break
                if fault is None:
                    if key in self._state.unreachable:
                        _log.warning("replica %s of %s accepts again", replica_id, service_key)
                    break
                if key not in self._state.unreachable:
                    self._state.unreachable.add(key)
                    _log.warning("replica %s of %s: %s", replica_id, service_key, fault)
                    self._on_change()
                await asyncio.sleep(PROBE_EVERY_S)
        finally:
            if key in self._state.unreachable:
                self._state.unreachable.discard(key)
                self._on_change()


async def probe(address: Address) -> str | None:
    """None when it accepts a connection, else why not."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_PROBE_TIMEOUT_S):
            if isinstance(address, UnixAddress):
                transport, _ = await loop.create_unix_connection(asyncio.Protocol, address.path)
            else:
                transport, _ = await loop.create_connection(
                    asyncio.Protocol, address.host, address.port
                )
    except TimeoutError:
        return f"{address} does not accept a connection within {_PROBE_TIMEOUT_S:g} s"
    except (OSError, UnicodeError) as error:  # the latter: no name that DNS could have
        why = getattr(error, "strerror", None) or error
        # The kernel refuses at whatever else lies there, too.
        path = Path(address.path) if isinstance(address, UnixAddress) else None
        refused = isinstance(error, ConnectionRefusedError)
        if path is not None and refused and not await asyncio.to_thread(path.is_socket):
            why = "it is not a socket"
        return f"{address} does not accept connections: {why}"
    transport.abort()
    return None
