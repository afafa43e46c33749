"""Two halves of one request: when one fails, the other is not left waiting for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from conversation import Wire, post, reply
from test_peers import apart, body

from gatewayd.bridge import halves

if TYPE_CHECKING:
    from conftest import Bridge

HOST = "127.0.0.1:10001"
STREAM = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Pair:
    """A request on its way to both; `d` and `p` are (router's end, replica's end)."""

    def __init__(self, bridge: Bridge) -> None:
        self.bridge = bridge

    async def start(self, *names: str) -> None:
        self.prefill, self.decode = await apart(self.bridge)
        for name in names:
            setattr(self, name, await self.half(name))

    async def half(self, name: str) -> tuple[Wire, Wire]:
        router = await self.ask(name)
        wire, _ = await self.bridge.replicas[name].request()
        return router, wire

    async def ask(self, name: str) -> Wire:
        router = await self.bridge.client(self.prefill if name == "p" else self.decode)
        await router.send(post(body(self.prefill), "/v1/x", host=HOST))
        return router

    d: tuple[Wire, Wire]
    p: tuple[Wire, Wire]


@pytest.fixture
async def pair(bridge: Bridge) -> Pair:
    pair = Pair(bridge)
    await pair.start("p", "d")
    return pair


@pytest.mark.parametrize(("fails", "waits"), [("p", "d"), ("d", "p")])
@pytest.mark.parametrize("how", ["breaks", "is ill", "refuses"])
async def test_one_that_fails_ends_the_other(
    pair: Pair, fails: str, waits: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(halves, "REFUSAL_GRACE_S", 0.01)
    router, wire = getattr(pair, fails)
    if how == "breaks":
        wire.writer.transport.abort()
    else:
        await wire.send(reply(b"no", status="400 No" if how == "refuses" else "500 No"))
    assert (await router.message()).status == {"breaks": 502, "is ill": 500, "refuses": 400}[how]
    router, wire = getattr(pair, waits)
    answer = await router.message()
    assert answer.status == (400 if how == "refuses" else 502)
    assert b"other replica" in answer.body
    assert await wire.gone() == b""


async def test_what_both_refuse_each_refuses_itself(pair: Pair) -> None:
    for router, wire in (pair.p, pair.d):
        await wire.send(reply(b"too long", status="400 Bad Request"))
        answer = await router.message()
        assert (answer.status, answer.body) == (400, b"too long")
        assert answer.closes  # its size is not told


async def test_a_stream_without_a_byte_yet_is_cut(pair: Pair) -> None:
    router, wire = pair.d
    await wire.send(STREAM)
    assert b" 200 " in await router.upto(b"\r\n\r\n")
    pair.p[1].writer.transport.abort()
    assert (await pair.p[0].message()).status == 502
    assert await router.gone() == b""
    assert await wire.gone() == b""


async def test_a_decode_that_answers_has_what_it_needs(pair: Pair) -> None:
    router, wire = pair.d
    await wire.send(STREAM + b"2\r\nhi\r\n")
    assert b" 200 " in await router.upto(b"2\r\nhi\r\n")
    pair.p[1].writer.transport.abort()
    assert (await pair.p[0].message()).status == 502
    await wire.send(b"0\r\n\r\n")
    await router.expect(b"0\r\n\r\n")


@pytest.mark.parametrize(("leaves", "stays"), [("d", "p"), ("p", "d")])
async def test_a_router_that_leaves_the_decode_leaves_both(
    pair: Pair, leaves: str, stays: str
) -> None:
    getattr(pair, leaves)[0].writer.transport.abort()
    assert await getattr(pair, leaves)[1].gone() == b""
    router, wire = getattr(pair, stays)
    if stays == "p":
        assert await wire.gone() == b""
        return
    await wire.send(reply(b"answer"))
    assert (await router.message()).body == b"answer"


async def test_one_that_comes_after_the_failure_is_not_sent_on(bridge: Bridge) -> None:
    pair = Pair(bridge)
    await pair.start("p")
    pair.p[1].writer.transport.abort()
    assert (await pair.p[0].message()).status == 502
    router = await pair.ask("d")
    answer = await router.message()
    assert (answer.status, b"other replica" in answer.body) == (502, True)
    assert bridge.replicas["d"].untouched


async def test_halves_that_end_well_do_not_touch_each_other(pair: Pair) -> None:
    for router, wire in (pair.p, pair.d):
        await wire.send(reply(b"fine"))
        assert (await router.message()).body == b"fine"
    assert repr(pair.bridge.role._peers.halves) == "<Halves 0 running>"
