"""A head that comes again is not worked out again, and nobody can tell but by the time it takes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from conversation import chunked, get, post
from harness import Gateway
from hypothesis import given
from hypothesis import strategies as st
from knowing import BEARER, knows, served, tokens

from gatewayd.core.model import RateLimit
from gatewayd.proxy.known import KnownHead, know


async def test_the_same_head_again_and_again(gateway: Gateway) -> None:
    requests, client = await served(gateway)
    request = get("/a?b", "X-Mine: 1")
    ids = {(await client.ask(request))["X-Request-Id"] for _ in range(5)}
    assert knows(gateway)
    assert len(ids) == 5
    assert {r["X-Request-Id"] for r in requests} == ids
    assert len({(r.start, r["X-Mine"], r["X-Forwarded-For"], r["Host"]) for r in requests}) == 1
    assert gateway.totals().codes == {200: 5}
    assert gateway.totals().bytes_out == 5 * len("/a?b")


async def test_bodies_of_any_length_behind_the_same_head(gateway: Gateway) -> None:
    requests, client = await served(gateway)
    bodies = [b"x" * size for size in (5, 5, 0, 123456, 7, 0, 1, 60000, 10)]
    for body in bodies:
        expected = body or b"/"
        assert (await client.ask(post(body))).body == expected
    assert [r.body for r in requests] == bodies
    assert all(r["Content-Length"] == str(len(r.body)) for r in requests)
    assert gateway.totals().bytes_in == sum(map(len, bodies))


async def test_a_head_that_differs_in_a_byte_is_another(gateway: Gateway) -> None:
    requests, client = await served(gateway)
    heads = ["X-A: 1", "X-A: 1", "X-A: 2", "X-B: 2", "x-a: 1", "X-A: 1"]
    for field in heads:
        await client.ask(post(b"body", "/", field))
    assert [(r.fields[1][0] + ": " + r.fields[1][1]) for r in requests] == heads


@pytest.mark.parametrize("cut", [1, 20, 60])
async def test_a_known_head_may_come_in_pieces(gateway: Gateway, cut: int) -> None:
    _, client = await served(gateway)
    request = post(b"body", "/", "X-Mine: 1234567890")
    for _ in range(2):
        assert (await client.ask(request)).body == b"body"
    await client.send(request[:cut])
    await client.nothing(0.01)
    await client.send(request[cut:])
    assert (await client.message()).body == b"body"
    assert (await client.ask(request)).body == b"body"


async def test_known_heads_in_one_segment_are_answered_in_order(gateway: Gateway) -> None:
    _, client = await served(gateway)
    for _ in range(2):
        await client.ask(post(b"one"))
    await client.send(post(b"two") + post(b"three") + get("/four") + post(b"five"))
    answers = [(await client.message()).body for _ in range(4)]
    assert answers == [b"two", b"three", b"/four", b"five"]


async def test_what_follows_a_known_request_is_read_as_a_request_of_its_own(
    gateway: Gateway,
) -> None:
    requests, client = await served(gateway)
    for _ in range(2):
        await client.ask(post(b"12345"))
    smuggled = get("/smuggled")
    await client.send(post(b"12345") + smuggled)
    assert (await client.message()).body == b"12345"
    assert (await client.message()).body == b"/smuggled"
    assert [r.target for r in requests] == ["/", "/", "/", "/smuggled"]


@pytest.mark.parametrize(
    "length",
    [b"+4", b"-4", b"4 4", b"0x4", b"4,4", b"4\r\nContent-Length: 4", b"\xb2", b"4_0", b""],
)
async def test_a_length_that_is_none_is_refused_as_ever(gateway: Gateway, length: bytes) -> None:
    requests, client = await served(gateway)
    for _ in range(2):
        await client.ask(post(b"body"))
    assert knows(gateway)
    await client.send(post(b"body").replace(b": 4\r\n", b": " + length + b"\r\n"))
    assert (await client.message()).status == 400
    assert len(requests) == 2


async def test_other_framing_behind_a_known_head(gateway: Gateway) -> None:
    requests, client = await served(gateway)
    for _ in range(2):
        await client.ask(post(b"body"))
    await client.send(
        get("/", "Transfer-Encoding: chunked", method="POST") + chunked(b"bo", b"dy", b"!")
    )
    assert (await client.message()).body == b"body!"
    assert (await client.ask(post(b"body"))).body == b"body"
    assert len(requests) == 4


async def test_each_time_counts_for_the_limit(gateway: Gateway) -> None:
    _, client = await served(gateway, rate_limits=(RateLimit("/", 1 / 60, 3),))
    answers = [(await client.ask(get())).status for _ in range(6)]
    assert answers == [200] * 4 + [429] * 2
    assert gateway.totals().rejections == {"rate_limit": 2}


async def test_a_body_too_large_behind_a_known_head(gateway: Gateway) -> None:
    _, client = await served(gateway, client_max_body_size=10)
    for _ in range(2):
        assert (await client.ask(post(b"0123456789"))).status == 200
    assert (await client.ask(post(b"0123456789a"))).status == 413


async def test_a_token_that_was_taken_back(gateway: Gateway) -> None:
    gateway.auth = tokens(b"sesame")
    requests, client = await served(gateway, auth=True)
    for _ in range(2):
        assert (await client.ask(get("/", BEARER))).status == 200
    gateway.auth = tokens(b"other")
    gateway.publish()
    assert (await client.ask(get("/", BEARER))).status == 401
    gateway.auth = tokens(b"sesame")
    gateway.publish()
    assert (await client.ask(get("/", BEARER))).status == 200
    assert [r["Authorization"] for r in requests] == ["Bearer sesame"] * 3


async def test_a_head_without_a_token_is_refused_each_time(gateway: Gateway) -> None:
    gateway.auth = tokens(b"sesame")
    _, client = await served(gateway, auth=True)
    for _ in range(3):
        assert (await client.ask(get())).status == 401
    assert not knows(gateway)


async def test_every_change_of_the_service_is_in_force_at_once(gateway: Gateway) -> None:
    requests, client = await served(gateway)
    for _ in range(2):
        await client.ask(get("/v1/x"))
    gateway.change(strip_prefix="/v1")
    assert (await client.ask(get("/v1/x"))).body == b"/x"
    gateway.change(allowed_paths=("/v2/",))
    assert (await client.ask(get("/v1/x"))).status == 403
    gateway.change(allowed_paths=None, replicas=())
    assert (await client.ask(get("/v1/x"))).status == 503
    gateway.services.clear()
    gateway.publish()
    assert (await client.ask(get("/v1/x"))).status == 404
    assert [r.target for r in requests] == ["/v1/x", "/v1/x", "/x"]


async def test_the_client_that_a_proxy_names_stays_the_heads_own(gateway: Gateway) -> None:
    gateway.trusted_proxies = ("127.0.0.0/8",)
    requests, client = await served(gateway)
    one = get("/", "X-Forwarded-For: 1.1.1.1", "X-Request-Id: one")
    two = get("/", "X-Forwarded-For: 2.2.2.2")
    for request in (one, one, two, two, one):
        await client.ask(request)
    assert [r["X-Real-IP"] for r in requests] == [f"{n}.{n}.{n}.{n}" for n in (1, 1, 2, 2, 1)]
    assert [r["X-Request-Id"] == "one" for r in requests] == [True, True, False, False, True]
    assert requests[2]["X-Request-Id"] != requests[3]["X-Request-Id"]


@pytest.mark.parametrize(
    "request_",
    [
        get("/").replace(b"HTTP/1.1", b"HTTP/1.0"),
        get("/", "X-Long: " + "x" * 5000),
    ],
    ids=["HTTP/1.0", "long"],
)
async def test_what_is_not_remembered(gateway: Gateway, request_: bytes) -> None:
    _, client = await served(gateway)
    connections = []
    begin = gateway.edge.begin

    def noted(exchange: Any) -> None:
        begin(exchange)
        connections.append(exchange.connection)

    gateway.edge.begin = noted  # type: ignore[method-assign]
    assert (await client.ask(request_)).status == 200
    (connection,) = connections
    assert connection.known is None


# --- telling that it is the same

HEAD = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\nX: y\r\n\r\n"


def known(head: bytes = HEAD) -> KnownHead:
    exchange = SimpleNamespace(
        close=False,
        http11=True,
        length=12,
        expects_continue=False,
        upgrade=b"",
        served=object(),
        head=SimpleNamespace(noted={b"content-length": b"12"}),
        **dict.fromkeys(
            ("message", "host", "target", "client", "forwarded_lines", "given_id", "token_name",
             "bucket", "secure")
        ),
    )  # fmt: skip
    found = know(head, cast(Any, exchange), object())
    assert found is not None
    return found


@given(st.binary(max_size=40), st.sampled_from([b"", b"0", b"00", b" ", b"+", b"\r", b"1"]))
def test_the_same_head_with_its_whole_body_and_nothing_else(body: bytes, before: bytes) -> None:
    start, end = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: ", b"\r\nX: y\r\n\r\n"
    digits = before + b"%d" % len(body)
    told = int(digits) if digits.isdigit() else -1
    found = known().read(start + digits + end + body)
    assert found == (body if told == len(body) else max(0, told - len(body)))


@given(st.binary(max_size=8), st.integers(0, len(HEAD) + 12))
def test_no_other_bytes_pass_for_it(junk: bytes, at: int) -> None:
    whole = HEAD + b"x" * 12
    data = whole[:at] + junk + whole[at + len(junk) :]
    found = known().read(data)
    if data != whole and isinstance(found, bytes):
        # Only the length and the body may differ, and they agree.
        head, _, body = data.partition(b"\r\n\r\n")
        assert found == body
        assert b"Content-Length: %d\r\n" % len(body) in head.replace(b": 0", b": ")
        assert head.startswith(HEAD[:44])
