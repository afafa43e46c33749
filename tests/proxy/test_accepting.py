"""How a listening socket is accepted from."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import cast

import pytest

from gatewayd.proxy.accepting import listen
from gatewayd.proxy.server import EdgeServer

BURST = 8


class Met(asyncio.Protocol):
    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)


class Server:
    """As much of an EdgeServer as accepting asks for."""

    def __init__(self) -> None:
        self.met: list[Met] = []

    def accept(self) -> Met:
        self.met.append(Met())
        return self.met[-1]

    @property
    def connections(self) -> list[asyncio.Transport]:
        return [met.transport for met in self.met if met.transport is not None]


@pytest.fixture
def clients() -> Iterator[list[socket.socket]]:
    opened: list[socket.socket] = []
    yield opened
    for client in opened:
        client.close()


def listening(*, reuse_port: bool) -> socket.socket:
    sock = socket.socket()
    if reuse_port:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", 0))
    sock.listen(64)
    return sock


async def turns(sock: socket.socket, clients: list[socket.socket]) -> int:
    """Of the loop, until all that waited at it when it was first looked at are connections."""
    clients += [socket.create_connection(sock.getsockname()) for _ in range(BURST)]
    server = Server()
    listener = await listen(asyncio.get_running_loop(), cast(EdgeServer, server), sock)
    count = 0
    while len(server.connections) < BURST:
        count += 1
        assert count < 1000
        await asyncio.sleep(0)
    for transport in server.connections:
        transport.abort()
    listener.close()
    await asyncio.sleep(0)
    return count


async def test_a_burst_is_accepted_in_one_turn_of_the_loop(clients: list[socket.socket]) -> None:
    assert await turns(listening(reuse_port=True), clients) <= 3  # they are accepted, then begun


async def test_what_others_accept_from_too_is_not_emptied(clients: list[socket.socket]) -> None:
    assert await turns(listening(reuse_port=False), clients) >= BURST


async def test_a_closed_listener_accepts_nothing(clients: list[socket.socket]) -> None:
    sock = listening(reuse_port=True)
    address, kept = sock.getsockname(), sock.dup()  # as control keeps it
    server = Server()
    listener = await listen(asyncio.get_running_loop(), cast(EdgeServer, server), sock)
    listener.close()
    clients.append(socket.create_connection(address))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not server.met
    kept.close()
