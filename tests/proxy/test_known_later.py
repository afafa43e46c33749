"""A known head whose body comes behind it, and one that comes on another connection."""

from __future__ import annotations

from typing import Any

import pytest
from conversation import Message, get, post, reply
from harness import Gateway
from knowing import BEARER, knows, served, tokens

from gatewayd.core.model import RateLimit

# --- a body that comes behind its head


def parts(body: bytes, *fields: str) -> tuple[bytes, bytes]:
    request = post(body, "/", *fields)
    size = request.index(b"\r\n\r\n") + 4
    return request[:size], request[size:]


async def test_the_body_of_a_known_head_may_come_later(gateway: Gateway) -> None:
    requests, client = await served(gateway)
    for body in (b"first", b"second", b"x" * 60_000, b"y" * 500_000, b"last"):
        head, rest = parts(body)
        await client.send(head)
        await client.nothing(0.01)
        await client.send(rest[:3])
        await client.nothing(0.01)
        await client.send(rest[3:])
        assert (await client.message()).body == body
        assert knows(gateway)
    assert gateway.totals().bytes_in == sum(len(r.body) for r in requests) == 560_015
    assert gateway.totals().codes == {200: 5}


async def test_what_follows_a_late_body_is_a_request_of_its_own(gateway: Gateway) -> None:
    _, client = await served(gateway)
    await client.ask(post(b"body"))
    head, rest = parts(b"12345")
    await client.send(head)
    await client.nothing(0.01)
    await client.send(rest + get("/smuggled") + head)
    assert (await client.message()).body == b"12345"
    assert (await client.message()).body == b"/smuggled"
    await client.send(rest)
    assert (await client.message()).body == b"12345"


async def test_a_late_body_counts_in_the_world_it_comes_in(gateway: Gateway) -> None:
    gateway.auth = tokens(b"sesame")
    requests, client = await served(gateway, auth=True)
    await client.ask(post(b"body", "/", BEARER))
    head, rest = parts(b"body", BEARER)
    await client.send(head)
    await client.nothing(0.01)
    gateway.auth = tokens(b"other")
    gateway.publish()
    await client.send(rest)
    assert (await client.message()).status == 401
    assert len(requests) == 1


async def test_a_body_that_comes_slowly_is_passed_on_as_it_comes(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(post(b"body"))
    wire = await replica.accept()
    await wire.message()
    await wire.send(reply(b"ok"))
    assert (await client.message()).body == b"ok"
    head, rest = parts(b"slow")
    await client.send(head + rest[:2])
    wire = await replica.accept()  # a fresh connection, since the body does not come
    await client.send(rest[2:])
    assert (await wire.message()).body == b"slow"
    await wire.send(reply(b"ok"))
    assert (await client.message()).body == b"ok"


async def test_a_body_that_never_comes_is_timed_out_as_ever(gateway: Gateway) -> None:
    gateway.limit(body_idle_timeout=0.2)
    _, client = await served(gateway)
    await client.ask(post(b"body"))
    await client.send(parts(b"never")[0])
    assert (await client.message()).status == 408
    await client.gone()


async def test_who_waits_for_a_refusal_before_the_body_gets_it(gateway: Gateway) -> None:
    await gateway.edge.plane.aclose()  # no sweep: nobody waits until that comes round
    _, client = await served(gateway, rate_limits=(RateLimit("/", 0.001, 0),))
    await client.ask(post(b"body"))
    await client.send(parts(b"never")[0])
    assert (await client.message()).status == 429


@pytest.mark.parametrize("reset", [True, False])
async def test_who_leaves_before_the_body_is_counted_as_ever(gateway: Gateway, reset: bool) -> None:
    requests, client = await served(gateway)
    await client.ask(post(b"body"))
    await client.send(parts(b"never")[0])
    await client.nothing(0.01)
    client.reset() if reset else client.close()
    await gateway.settle_clients()
    assert gateway.totals().codes == {200: 1, 499: 1}
    assert len(requests) == 1


# --- a client that comes on a new connection each time


async def ask_anew(gateway: Gateway, request: bytes) -> Message:
    client = await gateway.client()
    answer = await client.ask(request)
    if answer.closes:
        await client.gone()
    else:
        client.close()
    return answer


async def parsed(gateway: Gateway, request: bytes) -> bool:
    """Whether the request, on a connection of its own, is answered without knowing its head."""
    seen = []
    begin = gateway.edge.begin

    def noted(exchange: Any) -> None:
        seen.append(exchange.known is None)
        begin(exchange)

    gateway.edge.begin = noted  # type: ignore[method-assign]
    try:
        assert (await ask_anew(gateway, request)).status == 200
    finally:
        gateway.edge.begin = begin  # type: ignore[method-assign]
    return seen == [True]


async def test_the_head_of_an_earlier_connection_is_known(gateway: Gateway) -> None:
    requests, _ = await served(gateway)
    for request in (get("/a"), get("/b", "Connection: close"), post(b"body")):
        assert await parsed(gateway, request)
        assert not await parsed(gateway, request)
    assert not await parsed(gateway, post(b"another body"))
    assert (await ask_anew(gateway, get("/b", "Connection: close"))).closes
    assert len({r["X-Request-Id"] for r in requests}) == len(requests) == 8


async def test_it_is_not_known_of_another_client_or_in_another_world(gateway: Gateway) -> None:
    requests, _ = await served(gateway)
    assert await parsed(gateway, get())
    client = await gateway.client(local="127.0.0.2")
    await client.ask(get())
    assert [r["X-Real-IP"] for r in requests] == ["127.0.0.1", "127.0.0.2"]
    gateway.publish()
    assert await parsed(gateway, get())


async def test_the_heads_of_many_clients_take_bounded_memory(gateway: Gateway) -> None:
    _, client = await served(gateway)
    for number in range(700):
        await client.ask(get(f"/{number}"))
    assert not await parsed(gateway, get("/699"))
    assert await parsed(gateway, get("/1"))
