"""Requests with known heads that arrive in one turn of the loop."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from conversation import Wire, get, post, soon
from harness import Gateway
from knowing import served


async def knowing(gateway: Gateway, count: int, request: bytes) -> list[Wire]:
    """Clients that have been answered once."""
    _, first = await served(gateway)
    clients = [first, *[await gateway.client() for _ in range(count - 1)]]
    for client in clients:
        assert (await client.ask(request)).status == 200
    return clients


def say_at_once(clients: list[Wire], request: bytes) -> None:
    """The loop that reads them is this one, and gets no turn in between."""
    for client in clients:
        client.writer.write(request)


async def test_they_go_through_each_stage_together(gateway: Gateway) -> None:
    clients = await knowing(gateway, 3, get("/"))
    order = []
    admits, serve = gateway.edge.admits, gateway.edge.serve

    def noted_admits(exchange: Any) -> bool:
        order.append("admits")
        return admits(exchange)

    def noted_serve(exchange: Any) -> None:
        order.append("serve")
        serve(exchange)

    gateway.edge.admits = noted_admits  # type: ignore[method-assign]
    gateway.edge.serve = noted_serve  # type: ignore[method-assign]
    say_at_once(clients, get("/"))
    for client in clients:
        assert (await client.message()).body == b"/"
    assert order == ["admits"] * 3 + ["serve"] * 3


@pytest.mark.parametrize("stage", ["admits", "serve"])
async def test_one_that_fails_costs_no_other(
    gateway: Gateway, caplog: pytest.LogCaptureFixture, stage: str
) -> None:
    clients = await knowing(gateway, 3, get("/"))
    good = getattr(gateway.edge, stage)
    came = []

    def fails(exchange: Any) -> Any:
        came.append(exchange)
        if len(came) == 2:
            raise LookupError("not thought of")
        return good(exchange)

    setattr(gateway.edge, stage, fails)
    say_at_once(clients, get("/"))
    assert (await clients[0].message()).body == b"/"
    assert (await clients[1].message()).status == 500
    assert (await clients[2].message()).body == b"/"
    assert (await clients[2].ask(get("/"))).status == 200
    assert "LookupError: not thought of" in caplog.text
    caplog.clear()


class Taken:
    """A transport whose client takes everything."""

    def __init__(self) -> None:
        self.answered = asyncio.Event()

    def write(self, data: bytes) -> None:
        self.answered.set()

    def get_extra_info(self, name: str) -> Any:
        return ("127.0.0.1", 1) if name == "peername" else None

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0


async def test_who_leaves_in_the_same_turn_is_counted(gateway: Gateway) -> None:
    await served(gateway)
    connection, transport = gateway.server(), Taken()
    connection.connection_made(cast(asyncio.Transport, transport))
    connection.data_received(get("/"))
    await soon(transport.answered.wait())
    connection.data_received(get("/"))
    connection.connection_lost(None)
    await asyncio.sleep(0)  # the turn ends
    assert gateway.totals().codes == {200: 1, 499: 1}


async def test_the_next_request_may_be_in_the_next_segment_of_the_same_turn(
    gateway: Gateway,
) -> None:
    (client,) = await knowing(gateway, 1, post(b"body"))
    client.writer.write(post(b"first"))
    client.writer.write(post(b"second") + get("/third"))
    assert [(await client.message()).body for _ in range(3)] == [b"first", b"second", b"/third"]
