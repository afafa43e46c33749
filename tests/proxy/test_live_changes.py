"""Snapshots that change under running requests, and draining."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from conversation import get, post, reply
from harness import Gateway
from waiting import until

from gatewayd.core.model import RateLimit
from gatewayd.proxy.process import _close_idle


async def test_a_running_request_keeps_the_world_it_began_with(gateway: Gateway) -> None:
    first = await gateway.serve()
    client = await gateway.client()
    await client.send(get("/old"))
    wire, _ = await first.request()
    second = await gateway.add_replica("second")
    gateway.change(replicas=(gateway.registered(second),), allowed_paths=("/new",))
    await wire.send(reply(b"", framing="chunked")[:-5] + b"3\r\nold\r\n")
    await client.upto(b"old\r\n")
    await wire.send(b"0\r\n\r\n")
    await client.upto(b"0\r\n\r\n")
    assert gateway.load(first) == 0
    await client.send(get("/new"))
    wire, request = await second.request()
    assert request.target == "/new"
    await wire.send(reply(b"new"))
    assert (await client.message()).body == b"new"


async def test_a_connection_to_a_removed_replica_is_not_kept(gateway: Gateway) -> None:
    """It would stay open for ever: nobody sweeps the pool of an address nobody dials."""
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get())
    wire, _ = await replica.request()
    gateway.change(replicas=())
    await wire.send(reply(b"last"))
    assert (await client.message()).body == b"last"
    assert await wire.gone() == b""
    assert gateway.load(replica) == 0


async def test_idle_connections_to_a_removed_replica_are_closed_at_once(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get())
    wire, _ = await replica.request()
    await wire.send(reply())
    assert (await client.message()).status == 200
    gateway.change(replicas=())
    assert await wire.gone() == b""
    assert (await client.ask(get())).status == 503


async def test_a_replica_that_comes_back_starts_afresh(gateway: Gateway) -> None:
    replica = await gateway.serve()
    replicas = gateway.services["chat"].replicas
    client = await gateway.client()
    await client.send(get("/1"))
    wire, _ = await replica.request()
    gateway.change(replicas=())
    gateway.change(replicas=replicas)
    await wire.send(reply(b"one"))
    assert (await client.message()).body == b"one"
    replica.answers = reply(b"two")
    assert (await client.ask(get("/2"))).body == b"two"


async def test_a_draining_replica_takes_no_new_request_and_ends_its_own(gateway: Gateway) -> None:
    first, second = await gateway.serve_by(2, balance="round_robin")
    second.answers = reply(b"second")
    client = await gateway.client()
    assert (await client.ask(get())).body == b"second"
    stream = await gateway.client()
    await stream.send(get("/stream"))
    wire, _ = await first.request()
    first_one, second_one = gateway.services["chat"].replicas
    gateway.change(replicas=(replace(first_one, draining=True), second_one))
    for _ in range(4):
        assert (await client.ask(get())).body == b"second"
    assert gateway.load(first) == 1
    await wire.send(reply(b"whole"))
    assert (await stream.message()).body == b"whole"
    assert gateway.load(first) == 0


async def test_a_removed_service_is_404_and_its_streams_end_whole(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get())
    wire, _ = await replica.request()
    del gateway.services["chat"]
    gateway.publish()
    await wire.send(reply(b"whole"))
    assert (await client.message()).body == b"whole"
    assert (await client.ask(get("/x"))).status == 404


async def test_a_tunnel_survives_the_removal_of_its_service(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get("/", "Connection: upgrade", "Upgrade: x"))
    wire, _ = await replica.request()
    await wire.send(b"HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
    assert (await client.message()).status == 101
    del gateway.services["chat"]
    gateway.publish()
    await client.send(b"still")
    await wire.expect(b"still")
    await wire.send(b"there")
    await client.expect(b"there")


async def test_a_hundred_changes_under_load_fail_nothing(gateway: Gateway) -> None:
    replicas = await gateway.serve_by(3)
    for replica in replicas:
        replica.answers = lambda request: reply(request.body or b"-", framing="chunked")
    everyone = gateway.services["chat"].replicas
    stop = False
    done = 0

    async def use(number: int) -> None:
        nonlocal done
        client = await gateway.client()
        while not stop:
            request = post(b"%d" % number) if number % 2 else get()
            answer = await client.ask(request)
            assert answer.status == 200
            done += 1

    users = [asyncio.create_task(use(n)) for n in range(8)]
    for turn in range(100):
        gateway.change(replicas=tuple(r for i, r in enumerate(everyone) if i != turn % 3))
        await asyncio.sleep(0.002)
    stop = True
    await asyncio.gather(*users)
    assert done > 50
    assert gateway.totals().codes == {200: done}


async def test_limits_keep_their_buckets_over_a_change(gateway: Gateway) -> None:
    await gateway.serve_by(0, rate_limits=(RateLimit("/", 0.1, 0),))
    client = await gateway.client()
    assert (await client.ask(get())).status == 503
    gateway.change(client_max_body_size=5)
    assert (await client.ask(get())).status == 429


async def test_ejections_survive_a_change(gateway: Gateway) -> None:
    first, second = await gateway.serve_by(2, balance="round_robin")
    second.answers = reply()
    first.stop_listening()
    client = await gateway.client()
    for _ in range(3):
        assert (await client.ask(get())).status == 200
    gateway.change(client_max_body_size=5)
    for _ in range(3):
        assert (await client.ask(get())).status == 200
    assert gateway.totals().retries == 1


# --- draining


async def test_draining_ends_connections_with_their_request(gateway: Gateway) -> None:
    replica = await gateway.serve()
    replica.answers = reply(b"before")
    client = await gateway.client()
    assert not (await client.ask(get())).closes
    gateway.edge.draining = True
    answer = await client.ask(get())
    assert (answer.body, answer.closes) == (b"before", True)
    assert await client.rest() == b""


@pytest.mark.parametrize(
    "request_",
    [get(host="none.example"), get("/x", host="none.example"), get("/", host="empty.example")],
    ids=["hello", "not found", "no replica"],
)
async def test_draining_is_said_in_the_gateways_own_answers_too(
    gateway: Gateway, request_: bytes
) -> None:
    await gateway.serve_by(0, "empty")
    gateway.edge.draining = True
    client = await gateway.client()
    answer = await client.ask(request_)
    assert answer.closes
    assert await client.rest() == b""


async def test_a_running_stream_ends_whole_while_draining(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client, idle = await gateway.client(), await gateway.client()
    await client.send(get())
    wire, _ = await replica.request()
    await wire.send(reply(b"", framing="chunked")[:-5] + b"5\r\nfirst\r\n")
    await client.upto(b"first\r\n")
    gateway.edge.draining = True
    _close_idle(gateway.plane)  # just accepted: its request may be on its way
    _close_idle(gateway.plane, idle_s=0.0)
    assert await idle.rest() == b""
    await wire.send(b"4\r\nlast\r\n0\r\n\r\n")
    assert await client.rest() == b"4\r\nlast\r\n0\r\n\r\n"


async def test_a_request_that_has_come_is_answered_though_the_loop_was_too_busy_to_read_it(
    gateway: Gateway,
) -> None:
    replica = await gateway.serve()
    replica.answers = reply(b"in time")
    client, idle = await gateway.client(), await gateway.client()
    await until(lambda: gateway.server.connections and len(gateway.server.each()) == 2)
    client.writer.write(get())  # it is in the kernel now, and nobody has read it
    gateway.edge.draining = True
    _close_idle(gateway.plane, idle_s=0.0)
    answer = await client.message()
    assert (answer.body, answer.closes) == (b"in time", True)
    assert await idle.rest() == b""


async def test_requests_that_wait_behind_a_stream_are_not_begun_while_draining(
    gateway: Gateway,
) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get("/1") + get("/2"))
    wire, _ = await replica.request()
    gateway.edge.draining = True
    await wire.send(reply(b"one"))
    answer = await client.message()
    assert (answer.body, answer.closes) == (b"one", True)
    assert await client.rest() == b""
    await until(lambda: not gateway.server.connections)
    assert len(replica.wires) == 1


async def test_half_a_request_is_let_in_while_draining(gateway: Gateway) -> None:
    replica = await gateway.serve()
    replica.answers = reply(b"in time")
    client = await gateway.client()
    request = get()
    await client.send(request[:10])
    await until(lambda: any(not c.idle for c in gateway.server.each()))
    gateway.edge.draining = True
    _close_idle(gateway.plane)
    answer = await client.ask(request[10:])
    assert (answer.body, answer.closes) == (b"in time", True)
