"""Two replicas for one request: where the router says they meet is made true in the bridge."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from conversation import chunked, get, post, reply
from waiting import until

from gatewayd.core.json_fields import HOLD_MAX
from gatewayd.core.model import PeerFields, ReplicaRole
from gatewayd.net.pool import Pool
from gatewayd.net.upstream import UpstreamConnection

if TYPE_CHECKING:
    from conftest import Bridge

HOST = "127.0.0.1:10001"
FIELDS = PeerFields("bootstrap_host", "bootstrap_port", "bootstrap_room")
PREFILL = ReplicaRole("prefill", 8998)


async def apart(bridge: Bridge) -> tuple[int, int]:
    """The ports of a prefill at 10.0.0.7 and of a decode."""
    prefill, _ = await bridge.port_of("p")
    decode, _ = await bridge.port_of("d")
    for port, role in ((prefill, PREFILL), (decode, ReplicaRole("decode"))):
        bridge.ports[port] = replace(
            bridge.ports[port], peer_fields=FIELDS, peer_host="10.0.0.7", role=role
        )
    await bridge.publish()
    return prefill, decode


def body(port: object, host: object = "127.0.0.1", **more: Any) -> bytes:
    fields = {**more, "bootstrap_host": host, "bootstrap_port": port, "bootstrap_room": 1 << 62}
    return json.dumps(fields).encode()


@pytest.mark.parametrize("framing", ["whole", "late", "chunked"])
async def test_both_halves_are_told_the_truth(bridge: Bridge, framing: str) -> None:
    prefill, decode = await apart(bridge)
    prompt = 'ä "bootstrap_port":10001' + "x" * 300_000
    sent = body(prefill, text=prompt)
    for name, port in (("p", prefill), ("d", decode)):
        client = await bridge.client(port)
        if framing == "chunked":
            head = get("/v1/x", "Transfer-Encoding: chunked", host=HOST, method="POST")
            await client.send(head + chunked(sent[:1000], sent[1000:]))
        else:
            request = post(sent, "/v1/x", host=HOST)
            first = len(request) if framing == "whole" else 5000
            await client.send(request[:first])
            if framing == "late":
                await until(lambda name=name: bridge.load(bridge.replicas[name]) == 1)
            await client.send(request[first:])
        wire, request = await bridge.replicas[name].request()
        told = json.loads(request.body)
        assert (told["bootstrap_host"], told["bootstrap_port"]) == ("10.0.0.7", 8998)
        assert (told["bootstrap_room"], told["text"]) == (1 << 62, prompt)
        assert bridge.load(bridge.replicas[name]) == 1
        await wire.send(reply(b"{}"))
        assert (await client.message()).status == 200


async def test_a_small_body_keeps_a_length(bridge: Bridge) -> None:
    prefill, decode = await apart(bridge)
    client = await bridge.client(decode)
    await client.send(post(body(prefill, a=1), "/generate", host=HOST))
    wire, request = await bridge.replicas["d"].request()
    assert int(request["Content-Length"]) == len(request.body)
    await wire.send(reply())
    assert (await client.message()).status == 200


async def test_a_batch_has_a_place_for_each_prompt(bridge: Bridge) -> None:
    prefill, decode = await apart(bridge)
    client = await bridge.client(decode)
    await client.send(post(body([prefill] * 2, ["127.0.0.1"] * 2), "/v1/x", host=HOST))
    wire, request = await bridge.replicas["d"].request()
    told = json.loads(request.body)
    assert told["bootstrap_host"] == ["10.0.0.7"] * 2
    assert told["bootstrap_port"] == [8998] * 2
    await wire.send(reply())
    assert (await client.message()).status == 200


async def test_what_names_no_place_passes_as_it_is(bridge: Bridge) -> None:
    _, decode = await apart(bridge)
    client = await bridge.client(decode)
    bridge.replicas["d"].answers = lambda request: reply(request.body)
    for sent in (b'{"a": {"bootstrap_host": "127.0.0.1"}}', b"[1]", b"not JSON"):
        assert (await client.ask(post(sent, "/v1/x", host=HOST))).body == sent


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("port", [1, None, "x", [10001, 1]])
async def test_a_place_that_nobody_is_at_is_refused(
    bridge: Bridge, port: object, late: bool
) -> None:
    _, decode = await apart(bridge)
    client = await bridge.client(decode)
    request = post(body(port, text="x" * 1000), "/v1/x", host=HOST)
    await client.send(request[:500] if late else request)
    if late:
        await until(lambda: bridge.load(bridge.replicas["d"]) == 1)
        await client.send(request[500:])
    answer = await client.message()
    assert answer.status == 503
    assert b"has left" in answer.body
    assert bridge.load(bridge.replicas["d"]) == 0


async def test_and_when_the_rest_of_it_comes_while_a_connection_is_made(
    bridge: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect, go = Pool.connect, asyncio.Event()

    async def slowly(pool: Pool, timeout_s: float | None) -> UpstreamConnection:
        await go.wait()
        return await connect(pool, timeout_s)

    monkeypatch.setattr(Pool, "connect", slowly)
    _, decode = await apart(bridge)
    client = await bridge.client(decode)
    request = post(body(1, text="x" * 1000), "/v1/x", host=HOST)
    await client.send(request[:500])
    await until(lambda: bridge.load(bridge.replicas["d"]) == 1)
    await client.send(request[500:])
    (forward,) = bridge.plane.sweeper.active
    await until(forward._exchange.payload.is_eof)
    go.set()
    assert (await client.message()).status == 503
    assert bridge.load(bridge.replicas["d"]) == 0


async def test_a_prefill_that_has_gone_is_met_by_nobody_new(bridge: Bridge) -> None:
    prefill, decode = await apart(bridge)
    bridge.ports[prefill] = replace(bridge.ports[prefill], role=None)
    await bridge.publish()
    client = await bridge.client(decode)
    assert (await client.ask(post(body(prefill), "/v1/x", host=HOST))).status == 503


async def test_fields_that_are_too_far_apart_are_not_waited_for(bridge: Bridge) -> None:
    prefill, decode = await apart(bridge)
    client = await bridge.client(decode)
    far = b'{"bootstrap_host":"127.0.0.1","text":"%b","bootstrap_port":%d}'
    await client.send(post(far % (b"x" * (HOLD_MAX + 10), prefill), "/v1/x", host=HOST))
    assert (await client.message()).status == 413
