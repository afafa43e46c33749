"""Scripted parties for tests that read as a conversation: each side says bytes and sees bytes.

`Wire` is one end of a connection, `Replica` a server on a Unix socket whose connections a test
answers byte by byte. Every wait is bounded; a message that ends early is a `Cut`, never a short
body, so that a test cannot take one for the other.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from waiting import PATIENCE_S

WAIT_S = PATIENCE_S
T = TypeVar("T")


class Cut(Exception):  # noqa: N818  (an outcome that tests expect)
    """The connection ended in the middle of a message; `seen` is what had come of it."""

    def __init__(self, seen: bytes, *, reset: bool) -> None:
        super().__init__(f"{'reset' if reset else 'closed'} after {seen!r:.200}")
        self.seen = seen
        self.reset = reset


async def soon(awaitable: Awaitable[T], wait_s: float | None = WAIT_S) -> T:
    async with asyncio.timeout(wait_s):
        return await awaitable


@dataclass
class Message:
    """One request or response as it was on the wire; `body` is without its framing."""

    start: str
    fields: list[tuple[str, str]]
    body: bytes = b""
    trailers: list[tuple[str, str]] = field(default_factory=list)

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.fields if key.lower() == name.lower()]

    def __getitem__(self, name: str) -> str:
        (value,) = self.all(name)
        return value

    def __contains__(self, name: str) -> bool:
        return bool(self.all(name))

    @property
    def status(self) -> int:
        return int(self.start.split(" ")[1])

    @property
    def method(self) -> str:
        return self.start.split(" ")[0]

    @property
    def target(self) -> str:
        return self.start.split(" ")[1]

    @property
    def closes(self) -> bool:
        return "close" in ",".join(self.all("Connection")).lower()


class Wire:
    """One end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    # --- saying

    async def send(self, *parts: bytes) -> None:
        """Each part in a write of its own; returns when the transport has taken it."""
        for part in parts:
            self.writer.write(part)
            await soon(self.writer.drain())

    def half_close(self) -> None:
        self.writer.write_eof()

    def close(self) -> None:
        """What was sent still arrives."""
        self.writer.close()

    def reset(self) -> None:
        """On TCP the peer gets a reset; what it has not read is lost."""
        sock = self.writer.get_extra_info("socket")
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    # --- seeing

    async def _read(self, size: int) -> bytes:
        try:
            data = await soon(self.reader.read(size))
        except ConnectionError:
            raise Cut(b"", reset=True) from None
        return data

    async def exactly(self, size: int) -> bytes:
        return await self._whole(self.reader.readexactly(size))

    async def upto(self, end: bytes) -> bytes:
        return await self._whole(self.reader.readuntil(end))

    async def _whole(self, reading: Awaitable[bytes], wait_s: float | None = WAIT_S) -> bytes:
        try:
            data = await soon(reading, wait_s)
        except asyncio.IncompleteReadError as error:
            raise Cut(error.partial, reset=False) from None
        except ConnectionError:
            raise Cut(b"", reset=True) from None
        return data

    async def expect(self, data: bytes) -> None:
        """These bytes come next."""
        got = await self.exactly(len(data))
        assert got == data

    async def rest(self) -> bytes:
        """Everything up to the clean end of the connection."""
        data = b""
        while got := await self._read(1 << 20):
            data += got
        return data

    async def gone(self) -> bytes:
        """Waits for the end of the connection, clean or not; gives what came before it."""
        data = b""
        try:
            while got := await self._read(1 << 20):
                data += got
        except Cut:
            pass
        return data

    async def nothing(self, for_s: float = 0.05) -> None:
        """Not a byte, nor the end, arrives for a while."""
        try:
            async with asyncio.timeout(for_s):
                data = await self.reader.read(1 << 20)
        except TimeoutError:
            return
        raise AssertionError(f"came: {data!r}" if data else "the connection ended")

    async def message(self, *, to: str = "GET", wait_s: float | None = WAIT_S) -> Message:
        """The next whole message, whose head comes within `wait_s`. `to` is the method that a
        response answers."""
        head = await self._whole(self.reader.readuntil(b"\r\n\r\n"), wait_s)
        lines = head.decode("latin-1")[:-4].split("\r\n")
        fields = [_field(line) for line in lines[1:]]
        message = Message(lines[0], fields)
        response = lines[0].startswith("HTTP/")
        if response and (to == "HEAD" or message.status in (204, 304) or message.status < 200):
            return message
        if message.all("Transfer-Encoding"):
            assert message["Transfer-Encoding"] == "chunked"
            assert not message.all("Content-Length")
            await self._chunks(message)
        elif message.all("Content-Length"):
            message.body = await self.exactly(int(message["Content-Length"]))
        elif response:
            message.body = await self.rest()
        return message

    async def _chunks(self, message: Message) -> None:
        while True:
            line = await self.upto(b"\r\n")
            size = int(line[:-2].partition(b";")[0], 16)
            if not size:
                break
            message.body += await self.exactly(size)
            await self.expect(b"\r\n")
        while (line := await self.upto(b"\r\n")) != b"\r\n":
            message.trailers.append(_field(line[:-2].decode("latin-1")))

    async def ask(self, request: bytes) -> Message:
        """Send a request and read its answer."""
        await self.send(request)
        return await self.message(to=request.partition(b" ")[0].decode("latin-1"))


def _field(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    assert colon, f"not a field: {line!r}"
    return name, value.strip()


async def open_unix(path: Path | str) -> Wire:
    return Wire(*await soon(asyncio.open_unix_connection(path, limit=1 << 18)))


async def open_tcp(
    port: int, *, receive_buffer: int | None = None, local: str = "127.0.0.1"
) -> Wire:
    sock = socket.socket()
    sock.setblocking(False)
    sock.bind((local, 0))
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    try:
        await soon(asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port)))
    except BaseException:
        sock.close()
        raise
    limit = 1 << 20 if receive_buffer is None else receive_buffer
    return Wire(*await asyncio.open_connection(sock=sock, limit=limit))


Answer = bytes | Callable[[Message], bytes]


class Replica:
    """A server on a Unix socket. A test takes its connections with `accept`; or `answers` set,
    it answers each request of each connection with them until one says `Connection: close`."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path
        self.answers: Answer | None = None
        self.requests: list[Message] = []  # those that were answered automatically
        self.wires: list[Wire] = []
        self._waiting: asyncio.Queue[Wire] = asyncio.Queue()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, sock: socket.socket | None = None) -> None:
        """Listen on the path, or on a socket that is bound to it."""
        where = {"path": self.path} if sock is None else {"sock": sock}
        # The limit bounds what this end takes unasked, so that back-pressure reaches the gateway.
        self._server = await asyncio.start_unix_server(self._connected, limit=1 << 16, **where)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = Wire(reader, writer)
        self.wires.append(wire)
        if self.answers is None:
            self._waiting.put_nowait(wire)
        else:
            task = asyncio.get_running_loop().create_task(self._answer(wire))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, wire: Wire) -> None:
        assert self.answers is not None
        try:
            while True:
                request = await wire.message(wait_s=None)
                self.requests.append(request)
                answers = self.answers
                if answers is None:  # from now on the test answers
                    self._waiting.put_nowait(wire)
                    return
                data = answers if isinstance(answers, bytes) else answers(request)
                await wire.send(data)
                if b"connection: close\r\n" in data.lower() or request.closes:
                    break
        except (Cut, ConnectionError):
            pass
        wire.close()

    async def accept(self) -> Wire:
        """The next connection that the gateway opens."""
        return await soon(self._waiting.get())

    async def request(self) -> tuple[Wire, Message]:
        """The next new connection and the whole request on it."""
        wire = await self.accept()
        return wire, await wire.message()

    @property
    def untouched(self) -> bool:
        return not self.wires

    def stop_listening(self) -> None:
        """Connections are refused from now on; those that are open stay."""
        if self._server is not None:
            self._server.close()
            self._server = None
        if self.path.is_socket():
            self.path.unlink()

    async def stop(self) -> None:
        self.stop_listening()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for wire in self.wires:
            wire.writer.transport.abort()


def reply(
    body: bytes = b"ok", *fields: str, status: str = "200 OK", framing: str | None = None
) -> bytes:
    """A response with a Content-Length, or with other framing (`chunked`, `none`)."""
    lines = [f"HTTP/1.1 {status}", *fields]
    if framing is None:
        lines.append(f"Content-Length: {len(body)}")
    elif framing == "chunked":
        lines.append("Transfer-Encoding: chunked")
        body = chunked(body) if body else b"0\r\n\r\n"
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def chunked(*chunks: bytes) -> bytes:
    """A whole chunked body."""
    return b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in chunks) + b"0\r\n\r\n"


def get(path: str = "/", *fields: str, host: str = "chat.example", method: str = "GET") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *fields, "", ""]
    return "\r\n".join(lines).encode("latin-1")


def post(body: bytes, path: str = "/", *fields: str, host: str = "chat.example") -> bytes:
    return get(path, f"Content-Length: {len(body)}", *fields, host=host, method="POST") + body
