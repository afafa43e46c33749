"""Header fields on their way through: what is dropped, rebuilt, kept."""

from __future__ import annotations

import pytest
from conversation import Message, get, reply
from harness import Gateway


async def sent_on(gateway: Gateway, *fields: str) -> Message:
    """The request as the replica sees it."""
    replica = gateway.replicas.get("chat-a") or await gateway.serve()
    replica.answers = reply()
    client = await gateway.client()
    assert (await client.ask(get("/", *fields))).status == 200
    return replica.requests[-1]


async def passed_back(gateway: Gateway, *fields: str) -> Message:
    """The response as the client sees it."""
    replica = await gateway.serve()
    replica.answers = reply(b"ok", *fields)
    client = await gateway.client()
    return await client.ask(get())


async def test_ordinary_fields_travel_as_they_came_in_their_order(gateway: Gateway) -> None:
    fields = ["X-B: 1", "x-a: 2", "X-B: 3", "Cookie: a=b; c=d", "Accept-Encoding: gzip", "X-E: "]
    request = await sent_on(gateway, *fields)
    names = {"x-a", "x-b", "cookie", "accept-encoding", "x-e"}
    travelled = [f"{name}: {value}" for name, value in request.fields if name.lower() in names]
    assert [f.strip() for f in travelled] == [f.strip() for f in fields]


async def test_eight_bit_values_travel_unchanged(gateway: Gateway) -> None:
    replica = await gateway.serve()
    replica.answers = reply(b"ok", "X-Back: \xe4\xff")
    client = await gateway.client()
    answer = await client.ask(get("/", "X-There: \xe4\xff"))
    assert replica.requests[0]["X-There"] == "\xe4\xff"
    assert answer["X-Back"] == "\xe4\xff"


@pytest.mark.parametrize(
    "field",
    [
        "Keep-Alive: timeout=5",
        "Proxy-Connection: keep-alive",
        "Proxy-Authorization: Basic eA==",
        "TE: trailers",
        "Connection: keep-alive",
        "X_Real_IP: 1.2.3.4",
        "Content_Length: 5",
        "X-Real-IP: 1.2.3.4",
        "Forwarded: for=1.2.3.4",
        "X-Forwarded-For: 1.2.3.4",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Host: evil.example",
        "X-Forwarded-Port: 1",
        "X-Forwarded-Server: evil.example",
        "X-Request-Id: mine",
    ],
)
async def test_fields_of_the_hop_and_claims_of_the_client_stay_here(
    gateway: Gateway, field: str
) -> None:
    request = await sent_on(gateway, field)
    value = field.partition(": ")[2]
    assert value not in {v for _, v in request.fields}
    assert "_" not in "".join(name for name, _ in request.fields)


async def test_who_the_client_is_is_said_by_us(gateway: Gateway) -> None:
    request = await sent_on(gateway)
    assert request["X-Real-IP"] == "127.0.0.1"
    assert request["X-Forwarded-For"] == "127.0.0.1"
    assert request["X-Forwarded-Proto"] == "http"
    assert request["X-Forwarded-Host"] == "chat.example"
    assert "Forwarded" not in request


async def test_a_client_of_a_unix_listener_has_no_address(gateway: Gateway) -> None:
    replica = await gateway.serve()
    replica.answers = reply()
    client = await gateway.unix_client(await gateway.listen_unix())
    assert (await client.ask(get("/", "X-Forwarded-For: 1.2.3.4"))).status == 200
    assert replica.requests[0]["X-Real-IP"] == "unix:"


@pytest.mark.parametrize(
    ("forwarded_for", "client", "chain"),
    [
        (["192.0.2.9"], "192.0.2.9", "192.0.2.9, 127.0.0.1"),
        (["6.6.6.6, 192.0.2.9"], "192.0.2.9", "192.0.2.9, 127.0.0.1"),
        (["192.0.2.9, 10.1.2.3"], "192.0.2.9", "192.0.2.9, 10.1.2.3, 127.0.0.1"),
        (["192.0.2.9", "10.1.2.3"], "192.0.2.9", "192.0.2.9, 10.1.2.3, 127.0.0.1"),
        (["2001:db8::1"], "2001:db8::1", "2001:db8::1, 127.0.0.1"),
        (["10.9.9.9, 10.1.2.3"], "10.9.9.9", "10.9.9.9, 10.1.2.3, 127.0.0.1"),
        (["nonsense, 10.1.2.3"], "10.1.2.3", "10.1.2.3, 127.0.0.1"),
        (["192.0.2.9, unknown"], "127.0.0.1", "127.0.0.1"),
        ([""], "127.0.0.1", "127.0.0.1"),
        ([], "127.0.0.1", "127.0.0.1"),
    ],
)
async def test_a_trusted_proxys_word_is_taken_up_to_the_first_stranger(
    gateway: Gateway, forwarded_for: list[str], client: str, chain: str
) -> None:
    gateway.trusted_proxies = ("127.0.0.0/8", "10.0.0.0/8")
    request = await sent_on(
        gateway, *[f"X-Forwarded-For: {v}" for v in forwarded_for], "X-Forwarded-Proto: https"
    )
    assert request["X-Real-IP"] == client
    assert request["X-Forwarded-For"] == chain
    assert request["X-Forwarded-Proto"] == "https"


async def test_a_proto_that_is_none_is_not_taken_over(gateway: Gateway) -> None:
    gateway.trusted_proxies = ("127.0.0.0/8",)
    request = await sent_on(gateway, "X-Forwarded-Proto: javascript")
    assert request["X-Forwarded-Proto"] == "http"


async def test_fields_named_in_connection_end_here(gateway: Gateway) -> None:
    request = await sent_on(
        gateway, "Connection: X-Mine, close , x-other", "X-Mine: 1", "X-Other: 2", "X-Third: 3"
    )
    assert "X-Mine" not in request
    assert "X-Other" not in request
    assert request["X-Third"] == "3"


async def test_connection_cannot_take_away_what_the_gateway_says(gateway: Gateway) -> None:
    request = await sent_on(
        gateway, "Connection: X-Real-IP, X-Forwarded-For, X-Request-Id, Host, Content-Length"
    )
    assert request["X-Real-IP"] == "127.0.0.1"
    assert request["X-Forwarded-For"] == "127.0.0.1"
    assert request["X-Request-Id"]
    assert request["Host"] == "chat.example"


async def test_an_upload_keeps_its_framing_whatever_connection_names(gateway: Gateway) -> None:
    replica = await gateway.serve()
    replica.answers = reply()
    client = await gateway.client()
    request = get("/", "Connection: Content-Length", "Content-Length: 4", method="POST") + b"body"
    assert (await client.ask(request)).status == 200
    assert replica.requests[0].body == b"body"


@pytest.mark.parametrize(
    "field",
    [
        "Keep-Alive: timeout=5",
        "Proxy-Connection: keep-alive",
        "Proxy-Authenticate: Basic",
        "Upgrade: h2c",
        "X-Request-Id: the-replicas",
        "X-Accel-Buffering: yes",
        "X-Accel-Redirect: /secret",
    ],
)
async def test_fields_of_the_replicas_hop_stay_here(gateway: Gateway, field: str) -> None:
    answer = await passed_back(gateway, field)
    name, _, value = field.partition(": ")
    assert value not in answer.all(name)


async def test_fields_that_a_replica_names_in_connection_end_here(gateway: Gateway) -> None:
    answer = await passed_back(gateway, "Connection: X-Mine", "X-Mine: 1", "X-Other: 2")
    assert "X-Mine" not in answer
    assert answer["X-Other"] == "2"
    assert answer.body == b"ok"


async def test_a_replica_that_names_its_length_in_connection_does_not_lose_it(
    gateway: Gateway,
) -> None:
    answer = await passed_back(gateway, "Connection: Content-Length")
    assert (answer.body, answer["Content-Length"]) == (b"ok", "2")


async def test_ordinary_fields_of_an_answer_travel_as_they_came(gateway: Gateway) -> None:
    answer = await passed_back(
        gateway, "Set-Cookie: a=b", "set-cookie: c=d", "Server: engine", "Trailer: X", "X_Under: y"
    )
    assert answer.all("Set-Cookie") == ["a=b", "c=d"]
    assert answer["Server"] == "engine"
    assert answer["X_Under"] == "y"


async def test_an_answer_has_a_date_of_its_own_or_ours(gateway: Gateway) -> None:
    own = "Tue, 15 Nov 1994 08:12:31 GMT"
    assert (await passed_back(gateway, f"Date: {own}"))["Date"] == own
    gateway.replicas["chat-a"].answers = reply(b"ok")
    client = await gateway.client()
    assert (await client.ask(get()))["Date"].endswith(" GMT")


async def test_a_reason_of_the_replicas_own_is_kept(gateway: Gateway) -> None:
    replica = await gateway.serve()
    replica.answers = reply(b"", status="299 As You Like It")
    client = await gateway.client()
    assert (await client.ask(get())).start == "HTTP/1.1 299 As You Like It"
    replica.answers = b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n"
    assert (await client.ask(get())).status == 200


async def test_only_event_streams_ask_proxies_not_to_buffer(gateway: Gateway) -> None:
    answer = await passed_back(gateway, "Content-Type: Text/Event-Stream")
    assert answer["X-Accel-Buffering"] == "no"
    client = await gateway.client()
    gateway.replicas["chat-a"].answers = reply(b"ok", "Content-Type: application/json")
    assert "X-Accel-Buffering" not in await client.ask(get())
