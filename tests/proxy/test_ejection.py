"""A replica that fails is left out for a while, never the last one."""

from __future__ import annotations

import asyncio

from conversation import get, reply
from harness import Gateway
from waiting import until

# --- ejection


async def test_a_replica_that_fails_is_left_out_and_tried_with_one_request(
    gateway: Gateway,
) -> None:
    first, second = await gateway.serve_by(2, balance="round_robin")
    second.answers = reply(b"second")
    client = await gateway.client()

    async def fail_first() -> None:
        wire = await first.accept()
        await wire.message()
        wire.close()

    failing = asyncio.create_task(fail_first())
    answers = [(await client.ask(get())).status for _ in range(6)]
    await failing
    assert answers.count(502) == 1
    assert answers[-4:] == [200] * 4
    assert len(first.wires) == 1
    # After its second it gets one request, while the others go elsewhere.
    await asyncio.sleep(1.05)
    clients = [await gateway.client() for _ in range(4)]
    for each in clients:
        await each.send(get())
    wire = await first.accept()
    await wire.message()
    await until(lambda: len(second.requests) >= 5 + 3)
    assert len(first.wires) == 2
    await wire.send(reply(b"first"))
    bodies = [(await each.message()).body for each in clients]
    assert sorted(bodies) == [b"first"] + [b"second"] * 3


async def test_the_last_replica_is_never_left_out(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    for _ in range(3):
        await client.send(get())
        wire, _ = await replica.request()
        wire.close()
        assert (await client.message()).status == 502
    await client.send(get())
    wire, _ = await replica.request()
    await wire.send(reply())
    assert (await client.message()).status == 200
