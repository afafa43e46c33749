"""Death at each byte: whoever goes, nobody may take a part for the whole."""

from __future__ import annotations

import pytest
from conversation import Cut, chunked, get, post, reply
from harness import Gateway
from waiting import until

from gatewayd.core.model import Timeouts

COUNTED = reply(b"0123456789", "X-Own: 1")
CHUNKED = reply(b"", "X-Own: 1", framing="chunked")[:-5] + chunked(b"first", b"second!")
SSE = reply(b"", "Content-Type: text/event-stream", framing="chunked")[:-5] + chunked(
    b"data: a\n\n", b"data: [DONE]\n\n"
)


@pytest.mark.parametrize("answer", [COUNTED, CHUNKED, SSE], ids=["counted", "chunked", "sse"])
async def test_an_answer_cut_at_any_byte_never_ends_cleanly(
    gateway: Gateway, answer: bytes
) -> None:
    replica = await gateway.serve()
    head = answer.index(b"\r\n\r\n") + 4
    for cut in range(len(answer)):
        client = await gateway.client()
        await client.send(get())
        wire, _ = await replica.request()
        await wire.send(answer[:cut])
        wire.close()
        if cut < head:  # nothing of the answer has left: the client is told properly
            message = await client.message()
            assert (message.status, message["Content-Type"][:10]) == (502, "text/plain"), cut
        else:
            with pytest.raises(Cut):
                await client.message()
        client.close()


async def test_an_answer_cut_at_any_byte_by_a_reset_never_ends_cleanly(gateway: Gateway) -> None:
    replica = await gateway.serve()
    answer = CHUNKED
    for cut in range(answer.index(b"\r\n\r\n") + 4, len(answer), 7):
        client = await gateway.client()
        await client.send(post(b"x" * 200_000))
        wire = await replica.accept()
        await wire.upto(b"\r\n\r\n")
        await wire.send(answer[:cut])
        wire.reset()  # with the request unread: the gateway's end sees ECONNRESET
        with pytest.raises(Cut):
            await client.message()
        client.close()


async def test_an_answer_without_length_that_is_reset_resets_the_client(gateway: Gateway) -> None:
    """Its end is the connection's end, so only a reset tells a part from the whole."""
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(post(b"x" * 500_000))
    wire = await replica.accept()
    await wire.upto(b"\r\n\r\n")
    await wire.send(reply(b"some of it", framing="none"))
    await client.upto(b"some of it")
    wire.reset()
    with pytest.raises(Cut) as cut:
        await client.rest()
    assert cut.value.reset


async def test_an_answer_without_length_that_stalls_resets_the_client(gateway: Gateway) -> None:
    replica = await gateway.serve(timeouts=Timeouts(idle=0.05))
    client = await gateway.client()
    await client.send(get())
    wire, _ = await replica.request()
    await wire.send(reply(b"some of it", framing="none"))
    await client.upto(b"some of it")
    with pytest.raises(Cut) as cut:
        await client.rest()
    assert cut.value.reset
    await wire.gone()


@pytest.mark.parametrize(
    "request_",
    [
        post(b"0123456789", "/v1/x", "X-Own: 1"),
        get("/v1/x", "Transfer-Encoding: chunked", method="POST") + chunked(b"first", b"second!"),
        get("/v1/x", "X-Own: 1"),
    ],
    ids=["counted", "chunked", "get"],
)
async def test_a_request_cut_at_any_byte_is_never_whole_at_the_replica(
    gateway: Gateway, request_: bytes
) -> None:
    replica = await gateway.serve()
    for cut in range(len(request_)):
        client = await gateway.client()
        await client.send(request_[:cut])
        if cut > request_.index(b"\r\n\r\n") + 3:
            wire = await replica.accept()
            client.close()
            with pytest.raises(Cut):
                await wire.message()
        else:
            client.close()
    assert gateway.idle_connections == 0


@pytest.mark.parametrize("how", ["half_close", "close", "reset"])
async def test_a_client_that_leaves_any_way_takes_its_request_back(
    gateway: Gateway, how: str
) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(post(b"0123456789")[:-5])
    wire = await replica.accept()
    await wire.upto(b"\r\n\r\n01234")
    getattr(client, how)()
    assert await wire.gone() == b""


async def test_an_answer_without_length_that_the_client_does_not_take_is_reset(
    gateway: Gateway,
) -> None:
    gateway.limit(write_timeout=0.2)
    replica = await gateway.serve()
    client = await gateway.client(receive_buffer=4096)
    await client.send(get())
    wire, _ = await replica.request()
    wire.writer.write(reply(b"x" * 12_000_000, framing="none"))
    await until(lambda: not gateway.server.connections, "the client is given up")
    await wire.gone()
    with pytest.raises(Cut) as cut:
        await client.rest()
    assert cut.value.reset
    assert gateway.totals().rejections == {"write_timeout": 1}
