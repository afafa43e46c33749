"""A scripted end of the link between bridge and worker: it says and hears frames one by one."""

from __future__ import annotations

import asyncio
import socket

from conversation import soon

from gatewayd.net.link import DATAGRAM_SIZE, pack, unpack


class Frames:
    def __init__(self, sock: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._sock.setblocking(False)
        self._heard: list[bytes] = []

    async def frame(self) -> bytes:
        """The next one."""
        while not self._heard:
            self._heard += unpack(await soon(self._loop.sock_recv(self._sock, DATAGRAM_SIZE)))
        return self._heard.pop(0)

    def say(self, *frames: bytes) -> None:
        self._sock.send(pack(frames)[1])

    async def say_soon(self, frame: bytes) -> None:
        """As soon as the other end has read what was said before."""
        await soon(self._loop.sock_sendall(self._sock, pack((frame,))[1]))

    @property
    def silent(self) -> bool:
        """Whether the other end has said nothing more."""
        if self._heard:
            return False
        try:
            return not self._sock.recv(DATAGRAM_SIZE)
        except BlockingIOError:
            return True

    def close(self) -> None:
        self._sock.close()
