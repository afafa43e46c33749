"""A data-plane process for tests of control: speaks the channel, carries no traffic.

    python scripted_process.py BEHAVIOUR CHANNEL_FD

writes one line of JSON on the file $SCRIPTED_LOG for each frame it gets. Behaviours, joined by `+`:
`ack` (acknowledges, reports every 50 ms), `silent` (ready, and from then on no sign of life),
`dead` (exits 3 at once), `deaf` (ready, acknowledges only the first), `heavy` (holds one request on
endpoint index 0), `idle` (reports once, then only lives on), `last-words` (counts its requests only
in its last report), `stubborn` (does not drain).
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys

from gatewayd.core.messages import (
    Ack,
    Certificates,
    Challenges,
    Configure,
    Drain,
    Expected,
    Message,
    Publish,
    Ready,
    ReopenLogs,
    Report,
    ServiceTotals,
)
from gatewayd.core.packing import PackedSnapshot, Unpacker
from gatewayd.core.snapshot import BridgeSnapshot
from gatewayd.net.alarm import Alarm
from gatewayd.net.channel import Channel
from gatewayd.net.loads import LoadTable


class Scripted:
    def __init__(self, behaviour: set[str], fd: int) -> None:
        self.behaviour = behaviour
        self.done = asyncio.get_running_loop().create_future()
        self.channel = Channel(socket.socket(fileno=fd), self.received, self.closed)
        self.configure: Configure | None = None
        self.loads: LoadTable | None = None
        self.alarm: Alarm | None = None
        self.publishes = 0
        self.reports = 0
        self.unpacker = Unpacker()
        self.ports: dict[int, int] = {}
        self.totals = ServiceTotals(codes={200: 1})

    def note(self, **line: object) -> None:
        path = os.environ.get("SCRIPTED_LOG")
        if path:
            with open(path, "a") as file:
                file.write(json.dumps({"pid": os.getpid(), **line}) + "\n")

    def received(self, message: Message, fds: list[int]) -> None:
        match message:
            case Configure():
                self.configure = message
                self.alarm = Alarm(fds[0])
                self.loads = LoadTable.attach(fds[1], message.slots, message.slot)
                kinds = [listener.kind for listener in message.listeners]
                self.note(frame="configure", slot=message.slot, fds=len(fds), kinds=kinds)
                if "heavy" in self.behaviour:
                    self.loads.add(0)
            case Publish():
                self.published(message, fds)
            case Certificates():
                names = [name for pair in message.pairs for name in pair.names]
                self.note(frame="certificates", names=names, default=message.default)
                self.channel.send(Ack(message.version))
            case Challenges():
                self.note(frame="challenges", http01=dict(message.http01), alpn=[*message.alpn])
                self.channel.send(Ack(message.version))
            case Expected():
                self.note(frame="expected", coming=[*message.coming], paused=[*message.paused])
                self.channel.send(Ack(message.version))
            case Drain():
                self.note(frame="drain", timeout=message.timeout)
                if "stubborn" not in self.behaviour:
                    if "last-words" in self.behaviour:
                        self.report({"main/llama": self.totals})
                    self.done.set_result(0)
            case ReopenLogs():
                self.note(frame="reopen")

    def published(self, message: Publish, fds: list[int]) -> None:
        snapshot = message.snapshot
        if isinstance(snapshot, PackedSnapshot):
            snapshot = self.unpacker.unpack(snapshot)
        self.publishes += 1
        self.ports.update(zip(message.new_ports, fds, strict=True))
        if isinstance(snapshot, BridgeSnapshot):
            missing = sorted(set(snapshot.ports) - set(self.ports))
            self.note(frame="ports", ports=sorted(snapshot.ports), new=len(fds), missing=missing)
        else:
            targets = {
                host: {
                    "endpoints": {e.id: str(e.address) for e in target.upstream.endpoints},
                    "indexes": {e.id: e.index for e in target.upstream.endpoints},
                    "router": str(target.upstream.router and target.upstream.router.address),
                    "mode": target.upstream.mode,
                }
                for host, target in snapshot.targets.items()
            }
            self.note(frame="snapshot", version=snapshot.version, targets=targets)
        if self.publishes == 1:
            if "silent" in self.behaviour and self.alarm:
                self.alarm.ring_in(0.1)
            self.channel.send(Ready(os.getpid()))
        if self.publishes == 1 or "deaf" not in self.behaviour:
            self.channel.send(Ack(snapshot.version))

    def report(self, totals: dict[str, ServiceTotals]) -> None:
        assert self.configure is not None
        if not self.channel.closed:
            configure = self.configure
            idle = self.reports > 0 and "idle" in self.behaviour
            if not idle:
                self.channel.send(Report(configure.slot, configure.incarnation, totals, 2))
                self.reports += 1

    def closed(self) -> None:
        self.done.set_result(1)

    async def run(self) -> int:
        while not self.done.done():
            if self.publishes and self.alarm and "silent" not in self.behaviour:
                self.alarm.ring_in(0.1)
                self.report({} if "last-words" in self.behaviour else {"main/llama": self.totals})
            await asyncio.wait((self.done,), timeout=0.05)
        return int(self.done.result())


async def main() -> int:
    return await Scripted(set(sys.argv[1].split("+")), int(sys.argv[2])).run()


if __name__ == "__main__":
    if "dead" in sys.argv[1]:
        sys.exit(3)
    sys.exit(asyncio.run(main()))
