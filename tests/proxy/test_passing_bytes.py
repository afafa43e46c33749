"""Bytes from a replica to a client: every kind of framing, and where each message ends."""

from __future__ import annotations

import pytest
from conversation import Cut, Message, Wire, chunked, get, post, reply
from harness import Gateway


async def test_a_counted_body_arrives_and_both_connections_live_on(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get("/a?b=c"))
    wire, request = await replica.request()
    assert request.start == "GET /a?b=c HTTP/1.1"
    for body in (b"first", b"second"):
        await wire.send(reply(body, "X-Own: yes"))
        answer = await client.message()
        assert (answer.status, answer.body, answer["X-Own"]) == (200, body, "yes")
        assert not answer.closes
        if body == b"first":
            await client.send(get("/next"))
            assert (await wire.message()).target == "/next"


async def test_chunks_arrive_as_they_were_framed(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get())
    wire, _ = await replica.request()
    await wire.send(reply(framing="chunked", body=b"")[: -len(b"0\r\n\r\n")])
    head = await client.upto(b"\r\n\r\n")
    assert b"\r\nTransfer-Encoding: chunked\r\n" in head
    for piece in (b"5;ext=1\r\nhello\r\n", b"A\r\n0123456789\r\n", b"0\r\nX-Sum: 15\r\n\r\n"):
        await wire.send(piece)
        await client.expect(piece)
    assert (await goes_on(client, wire)).body == b"on"


async def goes_on(client: Wire, wire: Wire) -> Message:
    """Both connections carry another exchange."""
    await client.send(get("/on"))
    assert (await wire.message()).target == "/on"
    await wire.send(reply(b"on"))
    return await client.message()


@pytest.mark.parametrize(
    "answer",
    [
        reply(b"", "Content-Length: 12345", framing="none"),
        reply(b"", "Transfer-Encoding: chunked", framing="none"),
        reply(b"", framing="none"),
    ],
    ids=["length", "chunked", "neither"],
)
async def test_the_answer_to_head_has_no_body_whatever_its_head_says(
    gateway: Gateway, answer: bytes
) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get(method="HEAD"))
    wire, request = await replica.request()
    assert request.method == "HEAD"
    await wire.send(answer)
    message = await client.message(to="HEAD")
    assert message.all("Content-Length") == (["12345"] if b"12345" in answer else [])
    assert (await goes_on(client, wire)).body == b"on"


async def test_bytes_behind_the_answer_to_head_reach_nobody(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get(method="HEAD"))
    wire, _ = await replica.request()
    await wire.send(reply(b"five!"))
    assert (await client.message(to="HEAD"))["Content-Length"] == "5"
    await wire.gone()
    await client.send(get())
    wire, _ = await replica.request()
    await wire.send(reply(b"clean"))
    assert (await client.message()).body == b"clean"


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
@pytest.mark.parametrize("fields", [(), ("Content-Length: 5",), ("Transfer-Encoding: chunked",)])
async def test_a_status_without_a_body_ends_with_its_head(
    gateway: Gateway, status: str, fields: tuple[str, ...]
) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get())
    wire, _ = await replica.request()
    await wire.send(reply(b"", *fields, status=status, framing="none"))
    message = await client.message()
    assert message.start == f"HTTP/1.1 {status}"
    assert not message.all("Transfer-Encoding")
    if status.startswith("204"):  # RFC 9110, 8.6: no Content-Length in a 204
        assert not message.all("Content-Length")
    assert (await goes_on(client, wire)).body == b"on"


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified", "200 OK"])
async def test_surplus_bytes_behind_an_empty_answer_are_never_pooled(
    gateway: Gateway, status: str
) -> None:
    fields = ("Content-Length: 0",) if status == "200 OK" else ()
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get())
    wire, _ = await replica.request()
    await wire.send(reply(b"surplus", *fields, status=status, framing="none"))
    assert (await client.message()).body == b""
    await wire.gone()
    assert gateway.idle_connections == 0
    await client.send(get())
    wire, _ = await replica.request()
    await wire.send(reply(b"clean"))
    assert (await client.message()).body == b"clean"


async def test_surplus_bytes_behind_a_counted_body_are_never_passed_on(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get())
    wire, _ = await replica.request()
    await wire.send(reply(b"body") + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")
    assert (await client.message()).body == b"body"
    await wire.gone()
    await client.nothing()
    await client.send(get())
    wire, _ = await replica.request()
    await wire.send(reply(b"clean"))
    assert (await client.message()).body == b"clean"


async def test_bytes_on_an_idle_connection_discard_it(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get())
    wire, _ = await replica.request()
    await wire.send(reply(b"one"))
    assert (await client.message()).body == b"one"
    assert gateway.idle_connections == 1
    await wire.send(reply(b"poison"))
    await wire.gone()
    await client.send(get())
    wire, _ = await replica.request()
    await wire.send(reply(b"two"))
    assert (await client.message()).body == b"two"


@pytest.mark.parametrize(
    "surplus",
    [b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison", b"x", b"\x00", b"0\r\n\r\n"],
)
async def test_a_second_message_behind_chunks_aborts_both_sides(
    gateway: Gateway, surplus: bytes
) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get())
    wire, _ = await replica.request()
    await wire.send(reply(b"body", framing="chunked") + surplus)
    seen = await client.gone()
    assert b"poison" not in seen
    assert not seen.endswith(b"0\r\n\r\n")
    await wire.gone()
    assert gateway.idle_connections == 0


@pytest.mark.parametrize("together", [True, False])
async def test_empty_lines_behind_chunks_are_surplus_too(gateway: Gateway, together: bool) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get())
    wire, _ = await replica.request()
    if together:
        await wire.send(reply(b"body", framing="chunked") + b"\r\n")
        assert (await client.message()).body == b"body"
    else:
        await wire.send(reply(b"body", framing="chunked"))
        assert (await client.message()).body == b"body"
        await wire.send(b"\r\n")
    await wire.gone()
    assert gateway.idle_connections == 0
    await client.nothing()
    await client.send(get())
    wire, _ = await replica.request()
    await wire.send(reply(b"clean"))
    assert (await client.message()).body == b"clean"


@pytest.mark.parametrize(
    "interim",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 102 Processing\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\n\r\n" * 3,
    ],
    ids=["100", "102", "103", "three"],
)
@pytest.mark.parametrize("together", [True, False])
async def test_interim_answers_are_swallowed(
    gateway: Gateway, interim: bytes, together: bool
) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get())
    wire, _ = await replica.request()
    if together:
        await wire.send(interim + reply(b"real"))
    else:
        await wire.send(interim)
        await client.nothing()
        await wire.send(reply(b"real"))
    answer = await client.message()
    assert (answer.status, answer.body) == (200, b"real")
    assert "Link" not in answer
    assert (await goes_on(client, wire)).body == b"on"


async def test_a_body_that_ends_with_its_connection_ends_the_clients_too(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get())
    wire, _ = await replica.request()
    await wire.send(reply(b"part one, ", framing="none"))
    head = await client.upto(b"\r\n\r\n")
    assert b"\r\nConnection: close\r\n" in head
    await client.expect(b"part one, ")
    await wire.send(b"part two")
    wire.close()
    assert await client.rest() == b"part two"


async def test_an_answer_of_http_1_0_is_passed_on_and_not_pooled(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get())
    wire, _ = await replica.request()
    await wire.send(b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nold")
    answer = await client.message()
    assert (answer.start, answer.body) == ("HTTP/1.1 200 OK", b"old")
    assert not answer.closes
    await wire.gone()


async def test_a_replica_that_closes_is_not_pooled(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get())
    wire, _ = await replica.request()
    await wire.send(reply(b"bye", "Connection: close"))
    answer = await client.message()
    assert answer.body == b"bye"
    assert not answer.closes  # its connection is none of the client's business
    await wire.gone()


async def test_a_client_of_http_1_0_is_spoken_1_0_to_and_closed(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(b"GET /x HTTP/1.0\r\nHost: chat.example\r\n\r\n")
    wire, request = await replica.request()
    assert request.start == "GET /x HTTP/1.0"
    assert request.closes
    await wire.send(b"HTTP/1.0 200 OK\r\n\r\nuntil the end")
    wire.close()
    assert (await client.message()).body == b"until the end"
    assert await client.rest() == b""


async def test_a_client_of_http_1_0_never_sees_chunks(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(b"GET / HTTP/1.0\r\nHost: chat.example\r\n\r\n")
    wire, _ = await replica.request()
    await wire.send(reply(b"", framing="chunked")[:-5])
    head = await client.upto(b"\r\n\r\n")  # before there is a body
    assert b"ransfer-" not in head
    assert b"Connection: close\r\n" in head
    await wire.send(b"6\r\nchu")
    await client.expect(b"chu")
    await wire.send(b"nky\r\n3;a=b\r\ntwo\r\n")
    await client.expect(b"nkytwo")
    await wire.send(b"5\r\nthree\r\n0\r\n\r\n")
    assert await client.rest() == b"three"
    assert gateway.totals().codes == {200: 1}


async def test_a_client_of_http_1_0_sees_that_chunks_are_cut(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(b"GET / HTTP/1.0\r\nHost: chat.example\r\n\r\n")
    wire, _ = await replica.request()
    await wire.send(reply(b"some", framing="chunked")[:-5])
    await client.upto(b"some")
    wire.close()
    with pytest.raises(Cut) as cut:
        await client.rest()
    assert cut.value.reset


async def test_keep_alive_of_http_1_0_is_not_offered(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(b"GET / HTTP/1.0\r\nHost: chat.example\r\nConnection: keep-alive\r\n\r\n")
    wire, _ = await replica.request()
    await wire.send(reply(b"one"))
    answer = await client.message()
    assert answer.body == b"one"
    assert answer.closes
    assert await client.rest() == b""


async def test_a_client_that_asks_for_close_gets_it(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get("/", "Connection: close"))
    wire, request = await replica.request()
    assert not request.closes  # our connection to the replica is none of the client's business
    await wire.send(reply(b"bye"))
    answer = await client.message()
    assert answer.body == b"bye"
    assert answer.closes
    assert await client.rest() == b""
    assert gateway.idle_connections == 1


async def test_an_event_is_at_the_client_as_soon_as_the_replica_wrote_it(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(post(b"{}", "/v1/chat/completions"))
    wire, _ = await replica.request()
    await wire.send(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    head = await client.upto(b"\r\n\r\n")
    assert b"\r\nX-Accel-Buffering: no\r\n" in head
    # Byte by byte: nothing waits for a whole line, event or chunk.
    for byte in chunked(b"data: {}\n\n")[:-5]:
        await wire.send(bytes([byte]))
        await client.expect(bytes([byte]))
    await wire.send(b"0\r\n\r\n")
    await client.expect(b"0\r\n\r\n")


async def test_an_answer_cut_short_after_its_head_is_never_a_clean_end(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get())
    wire, _ = await replica.request()
    await wire.send(reply(b"0123456789")[:-4])
    wire.close()
    with pytest.raises(Cut):
        await client.message()
