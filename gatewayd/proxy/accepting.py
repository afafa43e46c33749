"""Accepting connections of a listening socket that control opened.

Owns: how many are accepted at once. Does not own: the sockets (net.listeners), what becomes of a
connection (server).
"""

from __future__ import annotations

import asyncio
import socket
from typing import Final

from gatewayd.proxy.server import EdgeServer

_BACKLOG: Final = 1024
# libuv accepts one connection per wake-up of a handle. A turn of the loop with one request in it
# costs half as much again as a share of a full one, so a socket that is ours alone has this many.
HANDLES: Final = 8


class Accepting:
    """Connections of one socket are accepted until it is closed."""

    def __init__(self, handles: list[asyncio.Server]) -> None:
        self._handles = handles

    def close(self) -> None:
        for handle in self._handles:
            handle.close()


async def listen(
    loop: asyncio.AbstractEventLoop,
    server: EdgeServer,
    sock: socket.socket,
    *,
    handles: int = HANDLES,
) -> Accepting:
    """Accept on a socket that control opened. One handle is enough where a connection begins with
    half a millisecond of computing, beside which a turn of the loop is nothing."""
    sock.setblocking(False)
    if sock.family == socket.AF_UNIX:
        return Accepting(
            [await loop.create_unix_server(server.accept, sock=sock, backlog=_BACKLOG)]
        )
    # Accepted connections inherit these, which saves two calls for each.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    socks = [sock]
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT):
        # No other process waits at it, to find nothing or to get less than its share.
        socks += [sock.dup() for _ in range(handles - 1)]
    return Accepting(
        [await loop.create_server(server.accept, sock=s, backlog=_BACKLOG) for s in socks]
    )
