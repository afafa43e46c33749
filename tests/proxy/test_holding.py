"""Requests for a service that is coming up wait for its first replica, not for ever."""

from __future__ import annotations

import pytest
from conversation import Replica, get, post, reply
from harness import Gateway
from waiting import until

from gatewayd.core.entrypoint import Entrypoint, ModelEntry
from gatewayd.core.model import RouterTraits, Upstream

HELLO = reply(b"hello")


async def coming(gateway: Gateway, **policy: object) -> Replica:
    """The service `chat`: its replica is there, and its tunnel is not."""
    gateway.upstreams["chat"] = Upstream((), coming=True)
    replica = await gateway.serve(**policy)
    replica.answers = HELLO
    return replica


def arrive(gateway: Gateway) -> None:
    del gateway.upstreams["chat"]
    gateway.publish()


async def test_a_request_waits_for_the_first_replica(gateway: Gateway) -> None:
    await coming(gateway)
    client = await gateway.client()
    await client.send(post(b"body", "/x"))
    other = await gateway.client()
    assert (await other.ask(get("/", host="nobody.example"))).status == 200  # nobody else waits
    gateway.publish()  # something else has changed
    arrive(gateway)
    answer = await client.message()
    assert (answer.status, answer.body) == (200, b"hello")
    assert gateway.totals().codes == {200: 1}
    assert gateway.totals().rejections == {}


async def test_it_waits_for_a_bounded_time(gateway: Gateway) -> None:
    await coming(gateway)
    gateway.limit(replica_wait=0.05)
    client = await gateway.client()
    assert (await client.ask(get("/"))).status == 503
    assert gateway.totals().rejections == {"no_replica": 1}
    gateway.limit(replica_wait=0.0)
    assert (await client.ask(get("/"))).status == 503
    arrive(gateway)
    assert (await client.ask(get("/"))).body == b"hello"


async def test_what_is_not_coming_is_not_waited_for(gateway: Gateway) -> None:
    await coming(gateway)
    client = await gateway.client()
    await client.send(get("/"))
    other = await gateway.client()
    await other.ask(get("/", host="nobody.example"))
    gateway.upstreams["chat"] = Upstream(())
    gateway.publish()
    assert (await client.message()).status == 503
    client = await gateway.client()
    gateway.upstreams["chat"] = Upstream((), coming=True)
    gateway.publish()
    await client.send(get("/"))
    await other.ask(get("/", host="nobody.example"))
    del gateway.services["chat"]
    gateway.publish()
    assert (await client.message()).status == 503


async def test_a_client_may_leave_meanwhile(gateway: Gateway) -> None:
    replica = await coming(gateway)
    client = await gateway.client()
    await client.send(get("/left"))
    other = await gateway.client()
    await other.ask(get("/", host="nobody.example"))
    client.close()
    await until(lambda: gateway.totals().codes == {499: 1})
    arrive(gateway)
    replica.answers = HELLO
    assert (await other.ask(get("/"))).body == b"hello"
    assert gateway.totals().codes == {499: 1, 200: 1}


async def test_whoever_may_not_ask_does_not_wait(gateway: Gateway) -> None:
    await coming(gateway, auth=True)
    client = await gateway.client()
    assert (await client.ask(get("/"))).status == 401


async def test_the_prefix_is_taken_away_once(gateway: Gateway) -> None:
    replica = await coming(gateway, strip_prefix="/a")
    replica.answers = None
    client = await gateway.client()
    await client.send(get("/a/a/x"))
    await (await gateway.client()).ask(get("/", host="nobody.example"))
    arrive(gateway)
    wire, request = await replica.request()
    assert request.target == "/a/x"
    await wire.send(HELLO)
    assert (await client.message()).status == 200


@pytest.mark.parametrize("wait", [10.0, 0.05])
async def test_models_wait_too(gateway: Gateway, wait: float) -> None:
    gateway.entrypoints.append(Entrypoint("main", "gateway.example", auth=False))
    gateway.models.append(ModelEntry("main", "m", "chat", 1700000000))
    gateway.limit(replica_wait=wait)
    await coming(gateway, model="m")
    client = await gateway.client()
    await client.send(post(b'{"model": "m"}', "/v1/completions", host="gateway.example"))
    if wait < 1:
        assert (await client.message()).status == 503
        return
    await (await gateway.client()).ask(get("/", host="nobody.example"))
    arrive(gateway)
    assert (await client.message()).body == b"hello"


async def test_a_service_with_a_router_waits_too(gateway: Gateway) -> None:
    gateway.upstreams["chat"] = Upstream((), traits=RouterTraits(), coming=True)
    replica = await gateway.serve()
    replica.answers = HELLO
    client = await gateway.client()
    await client.send(get("/"))
    await (await gateway.client()).ask(get("/", host="nobody.example"))
    arrive(gateway)
    assert (await client.message()).body == b"hello"
