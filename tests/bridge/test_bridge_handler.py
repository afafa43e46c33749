"""What the bridge does with a router's request: the hop to the replica, and telling how it went."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from conversation import chunked, get, post, reply
from waiting import until

if TYPE_CHECKING:
    from conftest import Bridge

BODY = b'{"prompt": "hello"}'
HOST = "127.0.0.1:10001"
ROUTERS = ("Authorization: Bearer routers-own-key", "X-Request-Id-R: token", "X-Request-Id: id-1")


async def test_a_request_goes_on_without_what_is_the_routers(bridge: Bridge) -> None:
    port, replica = await bridge.port_of("a")
    client = await bridge.client(port)
    await client.send(post(BODY, "/v1/x", *ROUTERS, "X-Other: kept", host=HOST))
    wire, request = await replica.request()
    assert (request.start, request.body) == ("POST /v1/x HTTP/1.1", BODY)
    assert "Authorization" not in request
    assert "X-Request-Id-R" not in request
    assert (request["X-Request-Id"], request["X-Other"]) == ("id-1", "kept")
    assert bridge.load(replica) == 1
    await wire.send(reply(b"token", "X-Own: yes"))
    answer = await client.message()
    assert (answer.status, answer.body, answer["X-Own"]) == (200, b"token", "yes")
    assert answer["X-Gatewayd-Replica"] == "a"
    assert "X-Gatewayd-Failure" not in answer
    assert not answer.closes  # the router keeps its connections
    assert bridge.load(replica) == 0


async def test_a_probe_is_answered_here(bridge: Bridge) -> None:
    port, replica = await bridge.port_of("a")
    client = await bridge.client(port)
    for _ in range(3):
        assert (await client.ask(get("/health", host=HOST))).status == 200
    assert replica.untouched
    await client.send(get("/health_generate", host=HOST))
    wire, request = await replica.request()
    assert request.target == "/health_generate"
    await wire.send(reply())
    assert (await client.message()).status == 200


async def test_an_http_2_preface_is_closed_quietly(bridge: Bridge) -> None:
    port, replica = await bridge.port_of("a")
    client = await bridge.client(port)
    await client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\x12\4\0\0\0\0\0" + b"x" * 18)
    assert await client.gone() == b""
    assert replica.untouched


@pytest.mark.parametrize(
    "status", ["301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent"]
)
async def test_a_redirect_is_never_passed_on(bridge: Bridge, status: str) -> None:
    port, replica = await bridge.port_of("a")
    client = await bridge.client(port)
    await client.send(post(BODY, "/v1/x", host=HOST))
    wire, _ = await replica.request()
    await wire.send(reply(b"", "Location: http://169.254.169.254/", status=status))
    answer = await client.message()
    assert answer.status == 502
    assert "Location" not in answer
    assert answer["X-Gatewayd-Failure"] == "broken"
    assert answer["X-Gatewayd-Replica"] == "a"


async def test_not_modified_is_no_redirect(bridge: Bridge) -> None:
    port, replica = await bridge.port_of("a")
    client = await bridge.client(port)
    await client.send(get("/x", host=HOST))
    wire, _ = await replica.request()
    await wire.send(reply(b"", status="304 Not Modified", framing="none"))
    assert (await client.message()).status == 304


async def test_a_replica_that_refuses_is_told_apart(bridge: Bridge) -> None:
    port, replica = await bridge.port_of("a")
    replica.stop_listening()
    client = await bridge.client(port)
    answer = await client.ask(post(BODY, "/v1/x", host=HOST))
    assert answer.status in (502, 503)
    assert answer["X-Gatewayd-Failure"] == "connect"
    assert answer["X-Gatewayd-Replica"] == "a"
    assert str(bridge.directory).encode() not in answer.body


@pytest.mark.parametrize("early", [True, False])
async def test_a_replica_that_breaks_is_told_apart(bridge: Bridge, early: bool) -> None:
    port, replica = await bridge.port_of("a", first_byte=0.1)
    client = await bridge.client(port)
    await client.send(post(BODY, "/v1/x", host=HOST))
    wire, _ = await replica.request()
    if early:
        wire.close()
    answer = await client.message()
    assert answer.status == (502 if early else 504)
    assert answer["X-Gatewayd-Failure"] == ("closed" if early else "first_byte_timeout")
    assert len(replica.wires) == 1


async def test_a_5xx_of_the_replica_carries_no_failure(bridge: Bridge) -> None:
    port, replica = await bridge.port_of("a")
    client = await bridge.client(port)
    await client.send(post(BODY, "/v1/x", host=HOST))
    wire, _ = await replica.request()
    await wire.send(
        reply(
            b"own words",
            "X-Gatewayd-Failure: connect",
            "X-Gatewayd-Replica: forged",
            status="503 Busy",
        )
    )
    answer = await client.message()
    assert (answer.status, answer.body) == (503, b"own words")
    assert answer["X-Gatewayd-Replica"] == "a"
    assert "X-Gatewayd-Failure" not in answer  # a replica cannot ask to be tried elsewhere


async def test_a_stream_passes_and_is_cut_when_the_replica_is(bridge: Bridge) -> None:
    port, replica = await bridge.port_of("a")
    client = await bridge.client(port)
    await client.send(post(BODY, "/v1/x", host=HOST))
    wire, _ = await replica.request()
    await wire.send(reply(b"", framing="chunked")[:-5] + chunked(b"part")[:-5])
    await client.upto(b"part\r\n")
    assert bridge.load(replica) == 1
    wire.close()
    assert await client.gone() == b""
    await until(lambda: not bridge.load(replica))


async def test_a_router_that_leaves_is_heard_by_the_replica(bridge: Bridge) -> None:
    port, replica = await bridge.port_of("a")
    client = await bridge.client(port)
    await client.send(post(BODY, "/v1/x", host=HOST))
    wire, _ = await replica.request()
    client.close()
    assert await wire.gone() == b""
    await until(lambda: not bridge.load(replica))


async def test_large_heads_and_bodies_of_the_edge_pass(bridge: Bridge) -> None:
    port, replica = await bridge.port_of("a")
    replica.answers = lambda request: reply(b"%d" % len(request.body))
    client = await bridge.client(port)
    fields = [f"X-{i}: " + "v" * 300 for i in range(100)]
    answer = await client.ask(post(b"x" * 3_000_000, "/" + "p" * 16_000, *fields, host=HOST))
    assert answer.body == b"3000000"


async def test_ports_stand_for_their_own_replicas(bridge: Bridge) -> None:
    ports = [await bridge.port_of(name) for name in "abc"]
    for port, replica in ports:
        replica.answers = reply(replica.name.encode())
        client = await bridge.client(port)
        assert (await client.ask(get("/", host=HOST))).body == replica.name.encode()


async def test_a_retired_port_takes_nothing_new_and_ends_what_runs(bridge: Bridge) -> None:
    port, replica = await bridge.port_of("a")
    running, idle = await bridge.client(port), await bridge.client(port)
    await running.send(post(BODY, "/v1/x", host=HOST))
    wire, _ = await replica.request()
    del bridge.ports[port]
    await bridge.publish()
    assert await idle.rest() == b""
    with pytest.raises(ConnectionError):
        await bridge.client(port)
    await wire.send(reply(b"whole"))
    answer = await running.message()
    assert (answer.body, answer.closes) == (b"whole", True)
    assert bridge.load(replica) == 0


async def test_a_new_bound_of_a_port_counts_from_now_on(bridge: Bridge) -> None:
    port, replica = await bridge.port_of("a")
    client = await bridge.client(port)
    bridge.ports[port] = replace(bridge.ports[port], first_byte_timeout=0.05)
    await bridge.publish()
    await client.send(post(BODY, "/v1/x", host=HOST))
    await replica.request()
    assert (await client.message()).status == 504


async def test_a_token_that_is_no_question_is_an_ordinary_request(bridge: Bridge) -> None:
    port, replica = await bridge.port_of("a")
    replica.answers = reply()
    client = await bridge.client(port)
    answer = await client.ask(get("/", "X-Request-Id-R: \xe4whatever", host=HOST))
    assert answer.status == 200
    assert "X-Request-Id-R" not in replica.requests[0]
