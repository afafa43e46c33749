"""Steered requests whose body is still arriving: whose time it is, and what may end meanwhile."""

from __future__ import annotations

import asyncio

import pytest
from conversation import post, reply
from steered import PATH, Steered
from uploading import FRAMINGS, noise, upload
from waiting import until

# --- the client's time is its own


async def test_a_slow_client_is_no_slow_router(steered: Steered) -> None:
    (replica,) = await steered.start(1, router={"steer_timeout": 0.15})
    replica.answers = reply()
    body = noise(5_000)
    client = await upload(steered, body, "length")
    asked = await steered.begun()
    while len(client.left) > 1:
        await client.go_on()
        await asyncio.sleep(0.1)
    # Meanwhile others are steered.
    other = await steered.client(post(b"{}", PATH))
    quick = await steered.chosen(replica)
    await other.message()
    assert await steered.bridge.finished() == quick.token
    quick.asking.answer()
    await client.end()
    assert await asked.asking.whole() == body
    asked.claim(replica)
    assert (await client.wire.message()).status == 200
    assert replica.requests[-1].body == body
    assert steered.outcomes == {"steered": 2}


async def test_from_its_last_byte_on_it_is_the_routers_time(steered: Steered) -> None:
    (replica,) = await steered.start(1, router={"steer_timeout": 0.15})
    replica.answers = reply()
    body = noise(5_000)
    client = await upload(steered, body, "length")
    await steered.begun()
    await client.go_on(2)
    await asyncio.sleep(0.25)
    assert steered.outcomes == {}
    await client.end()
    assert (await client.wire.message()).status == 200
    assert replica.requests[0].body == body
    assert steered.outcomes == {"timeout": 1}


async def test_a_client_that_stops_in_the_middle_of_its_body(steered: Steered) -> None:
    steered.gateway.limit(body_idle_timeout=0.1)
    (replica,) = await steered.start(1)
    client = await upload(steered, noise(5_000), "length")
    asked = await steered.begun()
    await client.go_on()
    answer = await client.wire.message()
    assert answer.status == 408
    await asked.asking.given_up()
    assert replica.untouched
    assert not steered.load
    assert steered.outcomes == {"abandoned": 1}


@FRAMINGS
async def test_a_client_that_leaves_in_the_middle_of_its_body(
    steered: Steered, framing: str
) -> None:
    (replica,) = await steered.start(1)
    client = await upload(steered, noise(5_000), framing)
    asked = await steered.begun()
    await client.go_on(2)
    client.wire.close()
    async with asyncio.timeout(0.2):
        await asked.asking.given_up()
    assert replica.untouched
    assert not steered.load
    assert steered.outcomes == {"abandoned": 1}


async def test_a_body_that_breaks_off_its_framing(steered: Steered) -> None:
    (replica,) = await steered.start(1)
    client = await upload(steered, noise(5_000), "chunked")
    asked = await steered.begun()
    await client.go_on()
    await client.wire.send(b"no size\r\n")
    assert (await client.wire.message()).status == 400
    await asked.asking.given_up()
    assert replica.untouched
    assert steered.outcomes == {"abandoned": 1}
    assert not steered.load


# --- the question ends while the body arrives


@FRAMINGS
@pytest.mark.parametrize("how", ["refuses", "dies", "resets", "loses the bridge", "claims"])
async def test_the_question_ends_in_the_middle_of_the_body(
    steered: Steered, framing: str, how: str
) -> None:
    (replica,) = await steered.start(1)
    body = noise(90_000)
    client = await upload(steered, body, framing)
    asked = await steered.begun()
    await client.go_on(2)
    await asyncio.sleep(0.01)
    match how:
        case "refuses":
            asked.asking.answer(413)
        case "dies":
            asked.asking.peer.die()
        case "resets":
            asked.asking.reset()
        case "loses the bridge":
            steered.bridge.close()
        case "claims":
            asked.claim(replica)
    upstream = await replica.accept()
    await client.end()
    request = await upstream.message()
    assert request.body == body
    await upstream.send(reply())
    assert (await client.wire.message()).status == 200
    outcome = {
        "refuses": "refused",
        "loses the bridge": "bridge_down",
        "claims": "steered",
    }.get(how, "router_down")
    assert steered.outcomes == {outcome: 1}
    if how == "claims":
        assert await steered.bridge.finished() == asked.token
        asked.asking.answer()
    await until(lambda: not steered.load, "the router has nothing in flight")
    assert steered.gateway.totals().bytes_in == len(body)


async def test_a_router_that_does_not_read(steered: Steered) -> None:
    """What waits for it is bounded, and its slowness counts as such."""
    limit = 4 << 20
    (replica,) = await steered.start(1, router={"steer_timeout": 0.2, "steer_body_limit": limit})
    replica.answers = reply()
    body = noise(3 << 20)
    client = await upload(steered, body, "length")
    await steered.begun()  # whose test end takes 64 KiB unasked
    async with asyncio.TaskGroup() as group:
        group.create_task(client.end())
        group.create_task(client.wire.message())
    assert replica.requests[0].body == body
    assert steered.outcomes == {"timeout": 1}


async def test_a_refused_replica_is_asked_about_again_with_the_whole_body(
    steered: Steered,
) -> None:
    first, second = await steered.start(2)
    second.answers = reply()
    first.stop_listening()
    body = noise(60_000)
    client = await upload(steered, body, "chunked")
    asked = await steered.begun()
    await client.end()
    await asked.asking.whole()
    asked.claim(first)
    await steered.finished(asked)
    steered.publish()
    again = await steered.chosen(second)
    assert again.body == asked.body == body
    assert (await client.wire.message()).status == 200
    assert second.requests[0].body == body
    await steered.finished(again)


async def test_requests_that_wait_behind_it_on_the_connection(steered: Steered) -> None:
    """Pipelined ones; their bytes are not taken for the body's."""
    (replica,) = await steered.start(1)
    replica.answers = lambda request: reply(request.body)
    wire = await steered.client(post(b"first", PATH) + post(b"second!", PATH) + post(b"3", PATH))
    for body in (b"first", b"second!", b"3"):
        asked = await steered.chosen(replica)
        assert asked.body == body
        assert (await wire.message()).body == body
        assert await steered.bridge.finished() == asked.token
        asked.asking.answer()
    await until(lambda: not steered.load, "the router has nothing in flight")
    await steered.ended(steered=3)
