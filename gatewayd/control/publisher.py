"""State in, snapshots out: compiled, sent to every process, awaited.

Owns: versions, delivery, what happens when nobody asks (a router came up, a port fell idle).
Does not own: what a snapshot says (control.compiler), the truth (control.registry), the processes
(control.workers).

The bridge comes first, so that no worker and no router is led to a port that nobody serves yet.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from gatewayd.control.compiler import Compiler
from gatewayd.control.slot import SlotProcess
from gatewayd.control.workers import Workers
from gatewayd.core.messages import (
    CertificatePair,
    Certificates,
    Challenges,
    Expected,
    Publish,
)
from gatewayd.core.packing import PackedSnapshot, Packer
from gatewayd.core.snapshot import BridgePort, BridgeSnapshot, Snapshot

_log = logging.getLogger(__name__)

ACK_TIMEOUT_S: Final = 5.0
_REAP_EVERY_S: Final = 0.25
_FDS_A_FRAME: Final = 200  # a channel takes 250 at once


class Publisher:
    """`publish` returns when every ready process has what the state was at the call, or newer.

    `on_published` is called after each delivery; routers are told of new ports then.
    """

    def __init__(
        self, compiler: Compiler, workers: Workers, on_published: Callable[[], None]
    ) -> None:
        self._compiler = compiler
        self._workers = workers
        self._on_published = on_published
        self._version = 0  # the last number given away, whatever for
        self._snapshot: Snapshot | None = None
        self._packed: PackedSnapshot | None = None
        self._packer = Packer()
        self._certificates: Certificates | None = None
        self._challenges: Challenges | None = None
        self._expected: Expected | None = None
        self._ports: dict[int, BridgePort] = {}
        self._ports_version = 0
        self._acked_ports: dict[int, BridgePort] = {}
        self._lock = asyncio.Lock()
        self._asked = self._answered = 0
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Publisher v{self.version}>"

    @property
    def version(self) -> int:
        """Of the newest snapshot for workers; 0 before the first."""
        return 0 if self._snapshot is None else self._snapshot.version

    def start(self) -> None:
        self._task = asyncio.create_task(self._background(), name="publisher")

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def request(self) -> None:
        """Publish soon, without waiting: something changed that nobody is asking about."""
        self._asked += 1
        self._wake.set()

    def check(self) -> None:
        """Raises what publishing the state as it is now would fail with."""
        self._compiler.check()

    async def publish(self) -> None:
        """Concurrent calls share one snapshot: whoever comes first carries all changes so far."""
        self._asked += 1
        mine = self._asked
        async with self._lock:
            if self._answered < mine:
                await asyncio.sleep(0)  # whoever calls in the same turn of the loop comes along
                answered = self._asked
                await self._deliver()
                self._answered = answered
            version = self.version
        # Outside of the lock: a worker that hangs delays who waits for it, not the next snapshot.
        await _acknowledged(self._workers.ready(), version)

    async def certify(self, pairs: tuple[CertificatePair, ...], default: str | None) -> None:
        """Returns when every ready worker uses these in handshakes."""
        self._version += 1
        self._certificates = Certificates(self._version, pairs, default)
        await self._secure(self._certificates)

    async def challenge(
        self, http01: Mapping[str, str], alpn: Mapping[str, CertificatePair]
    ) -> None:
        """Returns when an authority that asks any ready worker finds these."""
        self._version += 1
        self._challenges = Challenges(self._version, http01, alpn)
        await self._secure(self._challenges)

    def expect(self, coming: frozenset[str], paused: frozenset[str]) -> None:
        """Workers hear for which names there is something to wait for, behind what they were told
        before; see `Expected`."""
        before = self._expected or Expected(0)
        if (coming, paused) != (before.coming, before.paused):
            self._version += 1
            self._expected = Expected(self._version, coming, paused)
            for process in self._workers.alive():
                process.send(self._expected)

    async def _secure(self, message: Certificates | Challenges) -> None:
        for process in self._workers.alive():
            process.send(message)
        await _acknowledged(self._workers.ready(), message.version)

    def greet(self, process: SlotProcess) -> None:
        """A process was born: it gets the newest at once, and becomes ready with it."""
        if process.role == "bridge":
            self._send_ports(process)
            return
        # First, because the first snapshot opens the listeners.
        for message in (self._certificates, self._challenges, self._expected):
            if message is not None:
                process.send(message)
        if self._packed is not None:
            process.send(Publish(self._packed))

    def up_to_date(self) -> bool:
        """Whether every slot has a worker that acknowledged the newest snapshot."""
        processes = [slot.process for slot in self._workers.slots]
        return self._snapshot is not None and all(
            p is not None and p.ready and p.acked >= self.version for p in processes
        )

    async def settle(self, timeout: float) -> None:
        """Give a snapshot that has just been sent the time to be acknowledged."""
        waits = [process.when_acked(self.version) for process in self._workers.ready()]
        if waits:
            await asyncio.wait(waits, timeout=timeout)

    def bridged(self, service_key: str, replica_id: str) -> BridgePort | None:
        """What a router may dial for a replica: bound, and acknowledged by the bridge as it is.

        It stays so while the bridge is replaced: the socket is ours and queues what comes.
        """
        port = self._compiler.port(service_key, replica_id)
        return None if port is None else self._acked_ports.get(port)

    def bridge_port(self, service_key: str, replica_id: str) -> int | None:
        """Its number."""
        bridged = self.bridged(service_key, replica_id)
        return None if bridged is None else bridged.port

    async def _deliver(self) -> None:
        ports = self._compiler.bridge_ports()
        if ports != self._ports:
            self._ports = ports
            self._version += 1
            self._ports_version = self._version
        if ports:
            self._workers.want_bridge()
        await self._deliver_ports()
        self._version += 1
        self._snapshot = self._compiler.snapshot(self._version)
        self._packed = self._packer.pack(self._snapshot)
        for process in self._workers.alive():
            process.send(Publish(self._packed))
        self._on_published()
        if self._compiler.lingering:
            self._wake.set()

    async def _deliver_ports(self) -> None:
        bridge = self._workers.bridge.process
        if bridge is None:
            return
        if bridge.sent < self._ports_version:
            self._send_ports(bridge)
        if not bridge.ready:
            return  # whoever hears that it is ready asks for another round
        ports = self._ports
        await _acknowledged([bridge], self._ports_version)
        if bridge.acked >= self._ports_version:
            self._acked_ports = ports

    def _send_ports(self, bridge: SlotProcess) -> None:
        """As many frames as descriptors need, each with the ports as far as they have come."""
        held = bridge.ports_sent & self._ports.keys()
        missing = [port for port in self._ports if port not in held]
        sockets = self._compiler.port_sockets() if missing else {}
        while True:
            chunk, missing = missing[:_FDS_A_FRAME], missing[_FDS_A_FRAME:]
            held |= set(chunk)
            # The version stands for all ports, so it is only promised by the last frame.
            version = bridge.sent if missing else self._ports_version
            ports = {port: spec for port, spec in self._ports.items() if port in held}
            snapshot = BridgeSnapshot(version, ports)
            bridge.send(Publish(snapshot, tuple(chunk)), [sockets[port].fileno() for port in chunk])
            if not missing:
                break
        bridge.ports_sent = held
        bridge.sent = self._ports_version

    async def _background(self) -> None:
        """Requested publishing, and freeing what nobody uses any more."""
        while True:
            try:
                async with asyncio.timeout(_REAP_EVERY_S if self._compiler.lingering else None):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            try:
                if self._compiler.reap() or self._answered < self._asked:
                    await self.publish()
            except Exception:
                _log.exception("publishing failed; the data plane keeps its snapshot")
                await asyncio.sleep(_REAP_EVERY_S)


async def _acknowledged(processes: Sequence[SlotProcess], version: int) -> None:
    waits = [process.when_acked(version) for process in processes]
    if not waits:
        return
    _, pending = await asyncio.wait(waits, timeout=ACK_TIMEOUT_S)
    if pending:
        slow = [repr(p) for p in processes if p.alive and p.acked < version]
        _log.error("snapshot %d not acknowledged by %s", version, ", ".join(slow))
