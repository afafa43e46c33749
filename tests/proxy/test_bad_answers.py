"""Heads and chunks of a replica that cannot be trusted."""

from __future__ import annotations

import pytest
from conversation import chunked, get, reply
from harness import Gateway

BAD_HEADS = {
    "both lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    "both, other order": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n"
    ),
    "length twice": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "length list": b"HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello",
    "length signed": b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello",
    "length empty": b"HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\nhello",
    "length overflow": b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nhello",
    "gzip, chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "identity": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "coding twice": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n"
    ),
    "bare LF": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    "one bare LF": b"HTTP/1.1 200 OK\r\nA: b\nContent-Length: 2\r\n\r\nok",
    "obs-fold": b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 2\r\n\r\nok",
    "space before colon": b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok",
    "NUL": b"HTTP/1.1 200 OK\r\nA: \x00\r\nContent-Length: 2\r\n\r\nok",
    "no colon": b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n",
    "not HTTP": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "status 99": b"HTTP/1.1 99 Odd\r\nContent-Length: 0\r\n\r\n",
    "101 unasked": b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    "endless": b"HTTP/1.1 200 OK\r\n" + b"X-Much: " + b"a" * 70_000,
}


@pytest.mark.parametrize("head", BAD_HEADS.values(), ids=BAD_HEADS)
async def test_a_head_that_cannot_be_trusted_is_502(gateway: Gateway, head: bytes) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get())
    wire, _ = await replica.request()
    await wire.send(head)
    answer = await client.message()
    assert answer.status == 502
    assert b"upstream_error" in answer.body
    await wire.gone()
    assert len(replica.wires) == 1
    assert gateway.totals().upstream_errors == {("chat-a", "broken"): 1}
    # The client did nothing wrong: its connection lives on.
    await client.send(get())
    wire, _ = await replica.request()
    await wire.send(reply())
    assert (await client.message()).status == 200


BROKEN_CHUNKS = {
    "junk": b"zz\r\n",
    "sign": b"+5\r\nhello\r\n",
    "space": b"5 \r\nhello\r\n",
    "bare LF": b"5\nhello\n",
    "overflow": b"fffffffffffffffff\r\n",
    "no end of chunk": b"5\r\nhelloworld\r\n",
}


@pytest.mark.parametrize("chunks", BROKEN_CHUNKS.values(), ids=BROKEN_CHUNKS)
async def test_broken_chunks_cut_the_client(gateway: Gateway, chunks: bytes) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get())
    wire, _ = await replica.request()
    await wire.send(reply(b"", framing="chunked")[: -len(b"0\r\n\r\n")] + chunked(b"good")[:-5])
    await client.upto(b"good\r\n")
    await wire.send(chunks)
    assert await client.gone() == b""
    await wire.gone()
    assert gateway.totals().upstream_errors == {("chat-a", "reset"): 1}
