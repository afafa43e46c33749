"""Request bodies on their way: framing, Expect, early answers, both sides' slowness."""

from __future__ import annotations

import asyncio

import pytest
from conversation import Cut, chunked, get, post, reply
from harness import Gateway
from waiting import until

MIB = 1 << 20
EXPECT = "Expect: 100-continue"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


async def test_a_counted_body_travels_counted(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(post(b"0123456789", "/x", "Content-Type: text/plain"))
    wire, request = await replica.request()
    assert (request["Content-Length"], request.body) == ("10", b"0123456789")
    assert request["Content-Type"] == "text/plain"
    assert "Transfer-Encoding" not in request
    await wire.send(reply())
    assert (await client.message()).status == 200


async def test_a_chunked_body_travels_chunked_without_extensions_and_trailers(
    gateway: Gateway,
) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(
        get("/", "Transfer-Encoding: Chunked", method="POST"),
        b"5;name=value\r\nhello\r\n",
        b"006\r\n world\r\n0\r\nX-Trailer: secret\r\n\r\n",
    )
    wire, request = await replica.request()
    assert request.body == b"hello world"
    assert "Content-Length" not in request
    assert not request.trailers
    await wire.send(reply())
    assert (await client.message()).status == 200
    assert gateway.totals().bytes_in == 11


async def test_empty_bodies_keep_their_framing(gateway: Gateway) -> None:
    replica = await gateway.serve()
    replica.answers = reply()
    client = await gateway.client()
    assert (await client.ask(post(b""))).status == 200
    assert replica.requests[-1]["Content-Length"] == "0"
    request = get("/", "Transfer-Encoding: chunked", method="POST") + b"0\r\n\r\n"
    assert (await client.ask(request)).status == 200
    assert replica.requests[-1]["Transfer-Encoding"] == "chunked"
    assert (await client.ask(get())).status == 200
    assert not replica.requests[-1].all("Content-Length")
    assert (await client.ask(get(method="DELETE"))).status == 200
    assert not replica.requests[-1].all("Content-Length")


async def test_a_get_may_have_a_body(gateway: Gateway) -> None:
    replica = await gateway.serve()
    replica.answers = reply()
    client = await gateway.client()
    assert (await client.ask(get("/", "Content-Length: 4") + b"body")).status == 200
    assert replica.requests[-1].body == b"body"
    assert (await client.ask(get("/next"))).status == 200
    assert replica.requests[-1].target == "/next"


@pytest.mark.parametrize("size", [1, 65_535, 65_536, 65_537, 300_000, 3 * MIB])
@pytest.mark.parametrize("framing", ["counted", "chunked"])
async def test_a_body_of_any_size_arrives_whole(gateway: Gateway, size: int, framing: str) -> None:
    replica = await gateway.serve()
    replica.answers = lambda request: reply(request.body)
    client = await gateway.client()
    body = bytes(i * 7 % 251 for i in range(1000)) * (size // 1000 + 1)
    body = body[:size]
    if framing == "counted":
        request = post(body)
    else:
        pieces = [body[i : i + 10_000] for i in range(0, size, 10_000)]
        request = get("/", "Transfer-Encoding: chunked", method="POST") + chunked(*pieces)
    sending = asyncio.create_task(client.send(request))
    assert (await client.message()).body == body
    await sending
    assert gateway.totals().bytes_in == size
    assert gateway.totals().bytes_out == size


async def test_thousands_of_tiny_chunks_arrive(gateway: Gateway) -> None:
    replica = await gateway.serve()
    replica.answers = lambda request: reply(b"%d" % len(request.body))
    client = await gateway.client()
    request = get("/", "Transfer-Encoding: chunked", method="POST") + b"1\r\nx\r\n" * 60_000
    sending = asyncio.create_task(client.send(request + b"0\r\n\r\n"))
    assert (await client.message()).body == b"60000"
    await sending


async def test_expect_is_answered_here_and_not_forwarded(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get("/", EXPECT, "Content-Length: 5", method="POST"))
    await client.expect(CONTINUE)
    wire = await replica.accept()
    await client.send(b"hello")
    request = await wire.message()
    assert request.body == b"hello"
    assert "Expect" not in request
    await wire.send(reply())
    assert (await client.message()).status == 200
    assert await wire.rest() == b""  # we said that nothing follows on this connection
    await client.send(get())
    await replica.request()


async def test_expect_is_not_answered_twice_when_the_replica_does_too(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get("/", EXPECT, "Content-Length: 5", method="POST"))
    await client.expect(CONTINUE)
    wire = await replica.accept()
    await wire.send(CONTINUE)
    await client.send(b"hello")
    await wire.message()
    await wire.send(reply())
    assert (await client.message()).status == 200


async def test_a_refusal_of_expect_comes_without_100(gateway: Gateway) -> None:
    await gateway.serve_by(0)
    client = await gateway.client()
    answer = await client.ask(get("/", EXPECT, "Content-Length: 5", method="POST"))
    assert answer.status == 503
    assert answer.closes
    assert await client.gone() == b""


async def test_a_body_that_came_at_once_needs_no_100(gateway: Gateway) -> None:
    replica = await gateway.serve()
    replica.answers = reply()
    client = await gateway.client()
    assert (await client.ask(post(b"hello", "/", EXPECT))).status == 200
    await client.nothing()


async def test_expect_of_http_1_0_is_ignored(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    head = b"POST / HTTP/1.0\r\nHost: chat.example\r\nExpect: 100-continue\r\n"
    await client.send(head + b"Content-Length: 5\r\n\r\n")
    wire = await replica.accept()
    await client.nothing()
    await client.send(b"hello")
    assert (await wire.message()).body == b"hello"
    await wire.send(reply())
    assert (await client.message()).status == 200


# --- early answers


@pytest.mark.parametrize("framing", [None, "chunked"])
async def test_an_early_answer_during_an_upload_is_delivered_whole(
    gateway: Gateway, framing: str | None
) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get("/", f"Content-Length: {50 * MIB}", method="POST") + b"x" * 1000)
    wire = await replica.accept()
    await wire.upto(b"\r\n\r\n")
    await wire.send(reply(b"enough", status="413 Content Too Large", framing=framing))
    answer = await client.message()
    assert (answer.status, answer.body) == (413, b"enough")
    assert answer.closes
    # What it still sends is taken for a while, so that no reset overtakes the answer.
    await client.send(b"x" * 100_000)
    assert await client.rest() == b""
    await wire.gone()
    assert gateway.idle_connections == 0
    assert gateway.totals().codes == {413: 1}


async def test_an_early_answer_and_a_close_by_the_replica_are_delivered(gateway: Gateway) -> None:
    """The replica does not read the body: our write fails while its answer lies in the socket."""
    replica = await gateway.serve()
    for _ in range(20):
        client = await gateway.client()
        client.writer.write(get("/", f"Content-Length: {5 * MIB}", method="POST"))
        client.writer.write(b"x" * 5 * MIB)
        wire = await replica.accept()
        await wire.upto(b"\r\n\r\n")
        wire.writer.write(reply(b"enough", "Connection: close", status="413 Content Too Large"))
        wire.close()
        answer = await client.message()
        assert (answer.status, answer.body) == (413, b"enough")
        client.close()


async def test_the_drain_behind_an_early_answer_is_bounded(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gatewayd.proxy.ending._LINGER_SIZE", 2 * MIB)
    await gateway.serve(client_max_body_size=10)
    client = await gateway.client()
    await client.send(get("/", "Content-Length: 1000000000", method="POST"))
    assert (await client.message()).status == 413
    with pytest.raises(ConnectionError):
        await client.send(*[b"x" * 100_000] * 300)


async def test_the_drain_behind_an_early_answer_ends_in_time(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gatewayd.proxy.ending._LINGER_S", 0.1)
    await gateway.serve(client_max_body_size=10)
    client = await gateway.client()
    await client.send(get("/", "Content-Length: 1000000000", method="POST"))
    assert (await client.message()).status == 413
    await until(lambda: not gateway.server.connections, "the connection ends")


async def test_a_client_that_reads_to_the_end_and_closes_ends_the_drain_at_once(
    gateway: Gateway,
) -> None:
    await gateway.serve(client_max_body_size=10)
    client = await gateway.client()
    await client.send(get("/", "Content-Length: 1000000000", method="POST"))
    assert (await client.message()).status == 413
    assert await client.rest() == b""
    client.close()
    await until(lambda: not gateway.server.connections)


async def test_an_upload_goes_on_under_an_answer_that_streams(gateway: Gateway) -> None:
    """Both directions at once, as some protocols on top of POST have it."""
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get("/", "Transfer-Encoding: chunked", method="POST"))
    wire = await replica.accept()
    await wire.upto(b"\r\n\r\n")
    await wire.send(reply(b"", framing="chunked")[:-5])
    await client.upto(b"\r\n\r\n")
    for turn in range(5):
        word = b"word %d" % turn
        await client.send(b"%x\r\n%b\r\n" % (len(word), word))
        await wire.upto(word + b"\r\n")
        await wire.send(b"%x\r\n%b\r\n" % (len(word), word))
        await client.upto(word + b"\r\n")
    await client.send(b"0\r\n\r\n")
    await wire.upto(b"0\r\n\r\n")
    await wire.send(b"0\r\n\r\n")
    await client.upto(b"0\r\n\r\n")


async def test_an_upload_that_breaks_under_an_answer_that_streams_cuts_both(
    gateway: Gateway,
) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get("/", "Transfer-Encoding: chunked", method="POST"))
    wire = await replica.accept()
    await wire.upto(b"\r\n\r\n")
    await wire.send(reply(b"", framing="chunked")[:-5])
    await client.upto(b"\r\n\r\n")
    await client.send(b"nonsense\r\n")
    assert b"0\r\n" not in await client.gone()
    assert b"0\r\n" not in await wire.gone()


async def test_a_replica_that_is_gone_in_the_middle_of_an_upload_is_502(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get("/", "Content-Length: 1000000", method="POST") + b"x" * 1000)
    wire = await replica.accept()
    await wire.upto(b"\r\n\r\n")
    wire.close()
    answer = await client.message()
    assert answer.status == 502
    assert answer.closes
    assert len(replica.wires) == 1


async def test_an_upload_in_small_pieces_is_not_held_back(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get("/", "Content-Length: 5", method="POST"))
    wire = await replica.accept()
    await wire.upto(b"\r\n\r\n")
    for byte in b"hello":
        await client.send(bytes([byte]))
        await wire.expect(bytes([byte]))
    await wire.send(reply())
    assert (await client.message()).status == 200


async def test_a_request_whose_end_is_missing_is_not_whole_at_the_replica(
    gateway: Gateway,
) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get("/", "Transfer-Encoding: chunked", method="POST") + b"2\r\nok\r\n0\r\n")
    wire = await replica.accept()
    await wire.upto(b"ok\r\n")
    client.close()
    with pytest.raises(Cut):
        await wire.upto(b"0\r\n\r\n")
