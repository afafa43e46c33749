"""A request that a router carries again is passed on as ever, without its head being read anew."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from conversation import get, post, reply

from gatewayd.core.steering import token

if TYPE_CHECKING:
    from conftest import Bridge

HOST = "127.0.0.1:10001"


def carried(body: bytes, id_: str, *fields: str) -> bytes:
    return post(body, "/v1/x", "X-Kept: yes", f"x-request-id: {id_}", *fields, host=HOST)


def knowing(bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the head of each request that is begun from now on was known."""
    from gatewayd.bridge.handler import PortHandler

    begin, seen = PortHandler.begin, []

    def noted(self: PortHandler, exchange: Any) -> None:
        seen.append(exchange.known is not None)
        begin(self, exchange)

    monkeypatch.setattr(PortHandler, "begin", noted)
    return seen


async def test_each_keeps_its_id_and_its_body(
    bridge: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = knowing(bridge, monkeypatch)
    port, replica = await bridge.port_of("a")
    replica.answers = lambda request: reply(request.body, "X-Own: yes")
    client = await bridge.client(port)
    bodies = [b"first", b"second and longer", b"x" * 50_000, b"y" * 300_000, b"z"]
    for number, body in enumerate(bodies):
        answer = await client.ask(carried(body, f"id-{number}"))
        assert (answer.status, answer.body, answer["X-Own"]) == (200, body, "yes")
        assert answer["X-Gatewayd-Replica"] == "a"
    assert [r["X-Request-Id"] for r in replica.requests] == [f"id-{n}" for n in range(5)]
    assert [r.body for r in replica.requests] == bodies
    assert all((r["X-Kept"], r.start) == ("yes", "POST /v1/x HTTP/1.1") for r in replica.requests)
    assert bridge.load(replica) == 0
    assert known[:3] == [False, True, True]


async def test_a_question_among_them_is_still_a_question(bridge: Bridge) -> None:
    port, replica = await bridge.port_of("a")
    replica.answers = lambda request: reply(request.body)
    client = await bridge.client(port)
    for number in range(2):
        assert (await client.ask(carried(b"body", f"{number}"))).body == b"body"
    # Nobody of this token asks: it is refused, and in no case carried to the replica.
    answer = await client.ask(carried(b"body", "2", f"X-Request-Id-R: {token(2, 1, 1).decode()}"))
    assert (answer.status, answer["X-Gatewayd-Failure"]) == (503, "unclaimed")
    assert len(replica.requests) == 2


@pytest.mark.parametrize(
    "other",
    [
        carried(b"body", "id", "X-More: field"),
        carried(b"body", "id").replace(b"X-Kept: yes", b"X-Kept: no!"),
        carried(b"body", "id").replace(b"/v1/x", b"/v1/y"),
        carried(b"body", "an id with spaces"),
        get("/v1/x", "X-Kept: yes", "x-request-id: id", host=HOST),
    ],
    ids=["a field more", "another value", "another path", "another kind of id", "another method"],
)
async def test_what_differs_otherwise_is_read(
    bridge: Bridge, other: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = knowing(bridge, monkeypatch)
    port, replica = await bridge.port_of("a")
    replica.answers = lambda request: reply(request.start.encode())
    client = await bridge.client(port)
    for number in range(2):
        await client.ask(carried(b"body", f"{number}"))
    answer = await client.ask(other)
    assert answer.body.decode() == other.partition(b"\r\n")[0].decode()
    assert known == [False, True, False]


@pytest.mark.parametrize("cut", [10, 70, -2])
async def test_it_may_come_in_pieces(bridge: Bridge, cut: int) -> None:
    port, replica = await bridge.port_of("a")
    replica.answers = lambda request: reply(request.body)
    client = await bridge.client(port)
    for number in range(2):
        await client.ask(carried(b"body", f"{number}"))
    request = carried(b"another", "in-pieces")
    await client.send(request[:cut])
    await client.nothing(0.01)
    await client.send(request[cut:])
    assert (await client.message()).body == b"another"
    assert replica.requests[-1]["X-Request-Id"] == "in-pieces"


async def test_the_port_of_another_replica_knows_nothing_of_it(
    bridge: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, replica = await bridge.port_of("a")
    replica.answers = lambda request: reply(b"a")
    client = await bridge.client(port)
    for number in range(2):
        await client.ask(carried(b"body", f"{number}"))
    other_port, other = await bridge.port_of("b")
    other.answers = lambda request: reply(b"b")
    known = knowing(bridge, monkeypatch)
    other_client = await bridge.client(other_port)
    assert (await other_client.ask(carried(b"body", "3"))).body == b"b"
    assert known == [False]
