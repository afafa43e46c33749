"""The other end of shared connections (HTTP/2), scripted: what a router sees of questions.

`Peer` is one connection, `Asking` one request on it. A `Router` is a scripted replica that serves
both protocols on one Unix socket, as routers do.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from conversation import Replica, soon
from waiting import PATIENCE_S, until

from gatewayd.core import http2

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_INDEXED = {0x83: (":method", "POST"), 0x86: (":scheme", "http")}


def read_block(block: bytes) -> list[tuple[str, str]]:
    """A header block of literals, as our client writes it."""
    found, at = [], 0

    def string() -> str:
        nonlocal at
        size, shift = block[at] & 127, 0
        at += 1
        if size == 127:
            more = True
            while more:
                size += (block[at] & 127) << shift
                more, shift = bool(block[at] & 128), shift + 7
                at += 1
        at += size
        return block[at - size : at].decode("latin-1")

    while at < len(block):
        if block[at] in _INDEXED:
            found.append(_INDEXED[block[at]])
            at += 1
        else:
            assert block[at] == 0x10, f"no literal that is never indexed: {block[at]:#x}"
            at += 1
            name = string()
            found.append((name, string()))
    return found


class Asking:
    """One request. `cancelled` once the client has given it up."""

    def __init__(self, peer: Peer, number: int, block: bytes) -> None:
        self.peer = peer
        self.number = number
        self.fields = read_block(block)
        self.body = bytearray()
        self.ended = False
        self.cancelled = False
        self.moved = asyncio.Event()

    def __getitem__(self, name: str) -> str:
        (value,) = self.all(name)
        return value

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.fields if key == name.lower()]

    async def until(self, holds: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not holds():
                self.moved.clear()
                await self.moved.wait()

    async def whole(self) -> bytes:
        """Its body, when all of it has come."""
        await self.until(lambda: self.ended)
        return bytes(self.body)

    async def has(self, size: int) -> None:
        await self.until(lambda: len(self.body) >= size)

    async def given_up(self) -> None:
        """The client has cancelled it, or is gone."""
        await self.until(lambda: self.cancelled)

    # --- answers

    def begin(self, status: int = 200) -> None:
        block = http2.field(b":status", b"%d" % status)
        self.peer.send(http2.frame(http2.HEADERS, http2.END_HEADERS, self.number, block))

    def end(self, body: bytes = b"") -> None:
        for at in range(0, len(body), 16384):
            self.peer.send(http2.frame(http2.DATA, 0, self.number, body[at : at + 16384]))
        self.peer.send(http2.frame(http2.DATA, http2.END_STREAM, self.number))

    def answer(self, status: int = 200, body: bytes = b"done") -> None:
        self.begin(status)
        self.end(body)

    def answer_without_body(self, status: int) -> None:
        flags = http2.END_HEADERS | http2.END_STREAM
        block = http2.field(b":status", b"%d" % status)
        self.peer.send(http2.frame(http2.HEADERS, flags, self.number, block))

    def reset(self, code: int = 2) -> None:
        self.peer.send(http2.frame(http2.RST_STREAM, 0, self.number, code.to_bytes(4, "big")))


class Peer(asyncio.Protocol):
    """`takes`: opens its windows again for whatever has come, as a peer that reads does."""

    def __init__(
        self,
        heard: Callable[[Asking], None] = lambda _: None,
        *,
        settings: tuple[tuple[int, int], ...] = ((http2.MAX_CONCURRENT_STREAMS, 200),),
        takes: bool = True,
    ) -> None:
        self.settings = settings
        self.takes = takes
        self.asking: dict[int, Asking] = {}
        self.frames: list[tuple[int, int, int, bytes]] = []  # whatever is of no stream
        self.news = asyncio.Event()
        self.gone = False
        self.told: list[tuple[int, int]] = []
        self._heard = heard
        self._data = b""
        self._greeted = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.send(http2.settings(self.settings))

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        for asking in self.asking.values():
            asking.cancelled = asking.cancelled or not asking.ended
            asking.moved.set()
        self.news.set()

    def send(self, data: bytes) -> None:
        if not self.gone:
            self.transport.write(data)

    def die(self) -> None:
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        self._data += data
        if not self._greeted:
            if len(self._data) < len(_PREFACE):
                return
            assert self._data.startswith(_PREFACE)
            self._data = self._data[len(_PREFACE) :]
            self._greeted = True
        used = 0
        for kind, flags, number, start, used in http2.read_frames(self._data):
            self._frame(kind, flags, number, self._data[start:used])
        self._data = self._data[used:]
        self.news.set()

    def _frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind == http2.HEADERS:
            assert flags & http2.END_HEADERS
            asking = self.asking[number] = Asking(self, number, payload)
            asking.ended = bool(flags & http2.END_STREAM)
            self._heard(asking)
        elif kind == http2.DATA:
            asking = self.asking[number]
            asking.body += payload
            asking.ended = bool(flags & http2.END_STREAM)
            if self.takes and payload:
                self.send(http2.window_update(0, len(payload)))
                self.send(http2.window_update(number, len(payload)))
            asking.moved.set()
        elif kind == http2.RST_STREAM:
            self.asking[number].cancelled = True
            self.asking[number].moved.set()
        else:
            if kind == http2.SETTINGS and not flags & http2.ACK:
                self.told = http2.read_settings(payload)
                self.send(http2.frame(http2.SETTINGS, http2.ACK, 0))
            self.frames.append((kind, flags, number, payload))


class Router(Replica):
    """What is carried comes as to a replica; questions come by `asked`, from `peers`."""

    def __init__(self, name: str, path: Path) -> None:
        super().__init__(name, path)
        self.peers: list[Peer] = []
        self.takes = True
        self._questions: asyncio.Queue[Asking] = asyncio.Queue()
        self._silent: set[_Either] = set()  # connections that have said nothing yet

    async def start(self, sock: socket.socket | None = None) -> None:
        where = {"path": str(self.path)} if sock is None else {"sock": sock}
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Either(self), **where)

    def peer(self) -> Peer:
        self.peers.append(Peer(self._questions.put_nowait, takes=self.takes))
        return self.peers[-1]

    async def asked(self) -> Asking:
        return await soon(self._questions.get())

    @property
    def untouched(self) -> bool:
        return not self.wires and not self.peers

    async def stop(self) -> None:
        await super().stop()
        for connection in (*self.peers, *self._silent):
            connection.die()
        await until(lambda: all(peer.gone for peer in self.peers) and not self._silent)


class _Either(asyncio.Protocol):
    """Finds out which protocol a client speaks."""

    def __init__(self, router: Router) -> None:
        self._router = router

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._router._silent.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._router._silent.discard(self)

    def die(self) -> None:
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._router._silent.discard(self)
        protocol: asyncio.Protocol
        if data.startswith(b"PRI "):
            protocol = self._router.peer()
        else:
            reader = asyncio.StreamReader(limit=1 << 16)
            protocol = asyncio.StreamReaderProtocol(reader, self._router._connected)
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        protocol.data_received(data)


HEAD = http2.post(b"/v1", b"router", ((b"x-ask", b"s0.1.1"),))


@dataclass
class Asker:
    ends: list[str] = field(default_factory=list)
    moved: asyncio.Event = field(default_factory=asyncio.Event)

    def answered(self) -> None:
        self.ends.append("answered")
        self.moved.set()

    def broken(self) -> None:
        self.ends.append("broken")
        self.moved.set()

    async def end(self) -> str:
        async with asyncio.timeout(30):
            await self.moved.wait()
        await asyncio.sleep(0.005)
        (only,) = self.ends  # told once
        return only
