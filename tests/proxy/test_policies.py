"""What a service asks of requests: size, origin, rate, token."""

from __future__ import annotations

import hashlib

import pytest
from conversation import chunked, get, post, reply
from harness import Gateway

from gatewayd.core.model import Cors, RateLimit, Token, TokensAuth

ALICE = TokensAuth((Token("alice", hashlib.sha256(b"sesame").digest()),))


# --- body size


async def test_a_body_of_the_very_bound_passes(gateway: Gateway) -> None:
    replica = await gateway.serve(client_max_body_size=10)
    client = await gateway.client()
    await client.send(post(b"0123456789"))
    wire, request = await replica.request()
    assert request.body == b"0123456789"
    await wire.send(reply())
    assert (await client.message()).status == 200


async def test_a_body_that_says_it_is_too_large_is_413_at_once(gateway: Gateway) -> None:
    replica = await gateway.serve(client_max_body_size=10)
    client = await gateway.client()
    answer = await client.ask(get("/", "Content-Length: 11", method="POST"))
    assert answer.status == 413
    assert b"body_too_large" in answer.body
    assert answer.closes
    assert replica.untouched
    await client.send(b"0123456789A" + get("/smuggled"))
    assert await client.gone() == b""
    assert replica.untouched


async def test_a_body_that_is_found_too_large_at_once_is_413(gateway: Gateway) -> None:
    replica = await gateway.serve(client_max_body_size=10)
    client = await gateway.client()
    answer = await client.ask(
        get("/", "Transfer-Encoding: chunked", method="POST") + chunked(b"01234567", b"89A")
    )
    assert answer.status == 413
    for wire in replica.wires:
        assert not (await wire.gone()).endswith(b"0\r\n\r\n")


async def test_a_body_that_grows_too_large_on_the_way_is_413(gateway: Gateway) -> None:
    replica = await gateway.serve(client_max_body_size=10)
    client = await gateway.client()
    await client.send(
        get("/", "Transfer-Encoding: chunked", method="POST"), chunked(b"01234567")[:-5]
    )
    wire = await replica.accept()
    assert (await wire.upto(b"01234567\r\n")).count(b"\r\n\r\n") == 1
    await client.send(b"3\r\n89A\r\n")
    answer = await client.message()
    assert answer.status == 413
    assert answer.closes
    assert b"0\r\n\r\n" not in await wire.gone()
    assert gateway.totals().rejections == {"body_size": 1}
    assert gateway.totals().codes == {413: 1}


# --- CORS


async def test_a_preflight_is_answered_here(gateway: Gateway) -> None:
    replica = await gateway.serve(cors=Cors(), auth=False)
    client = await gateway.client()
    answer = await client.ask(
        get(
            "/v1/x",
            "Origin: https://app.example",
            "Access-Control-Request-Method: POST",
            method="OPTIONS",
        )
    )
    assert answer.status == 204
    assert answer["Access-Control-Allow-Origin"] == "*"
    assert "POST" in answer["Access-Control-Allow-Methods"]
    assert answer["Access-Control-Allow-Headers"] == "*"
    assert answer["Access-Control-Max-Age"] == "600"
    assert not answer.all("Content-Length")
    assert not answer.closes
    assert replica.untouched


@pytest.mark.parametrize("path", ["/", "/v1", "/any/%252e/path?q", "*"])
async def test_a_preflight_needs_no_token_no_room_and_no_replica(
    gateway: Gateway, path: str
) -> None:
    gateway.auth = ALICE
    limits = (RateLimit("/", 0.001, 0),)
    await gateway.serve_by(
        0, cors=Cors(), auth=True, rate_limits=limits, allowed_paths=("/v1/",), model="m"
    )
    client = await gateway.client()
    for _ in range(3):
        answer = await client.ask(get(path, method="OPTIONS"))
        assert answer.status == 204
        assert answer["Access-Control-Allow-Origin"] == "*"
        assert answer["Access-Control-Allow-Methods"] == (
            "GET, POST, PUT, DELETE, PATCH, OPTIONS, HEAD"
        )
    assert gateway.totals().rejections == {}


@pytest.mark.parametrize("status", ["200 OK", "404 Not Found", "500 X", "302 Found", "204 X"])
async def test_answers_of_any_status_are_for_every_origin(gateway: Gateway, status: str) -> None:
    replica = await gateway.serve(cors=Cors())
    replica.answers = reply(
        b"",
        "Access-Control-Allow-Origin: https://own.example",
        "Access-Control-Allow-Methods: PATCH",
        "Access-Control-Allow-Headers: X-Own",
        "Access-Control-Allow-Credentials: true",
        "Access-Control-Expose-Headers: X-Own",
        status=status,
    )
    client = await gateway.client()
    answer = await client.ask(get("/"))
    assert answer["Access-Control-Allow-Origin"] == "*"
    assert answer["Access-Control-Allow-Headers"] == "*"
    assert "PATCH, OPTIONS" in answer["Access-Control-Allow-Methods"]
    assert "Access-Control-Allow-Credentials" not in answer
    assert answer["Access-Control-Expose-Headers"] == "X-Own"


async def test_an_origin_that_may_not_ask_learns_nothing(gateway: Gateway) -> None:
    await gateway.serve(cors=Cors(origins=("https://app.example",)))
    client = await gateway.client()
    answer = await client.ask(get("/", "Origin: https://evil.example", method="OPTIONS"))
    assert answer.status == 204
    assert "Access-Control-Allow-Origin" not in answer
    assert answer["Vary"] == "Origin"
    answer = await client.ask(get("/", "Origin: https://app.example", method="OPTIONS"))
    assert answer["Access-Control-Allow-Origin"] == "https://app.example"
    assert answer["Vary"] == "Origin"


async def test_the_gateways_cors_fields_replace_the_replicas(gateway: Gateway) -> None:
    replica = await gateway.serve(cors=Cors(origins=("https://app.example",), credentials=True))
    client = await gateway.client()
    await client.send(get("/", "Origin: https://app.example"))
    wire, request = await replica.request()
    assert request["Origin"] == "https://app.example"
    await wire.send(
        reply(b"ok", "Access-Control-Allow-Origin: *", "access-control-allow-methods: NONE")
    )
    answer = await client.message()
    assert answer["Access-Control-Allow-Origin"] == "https://app.example"
    assert "NONE" not in answer["Access-Control-Allow-Methods"]
    assert answer["Access-Control-Allow-Credentials"] == "true"


async def test_a_browser_may_read_why_it_was_refused(gateway: Gateway) -> None:
    await gateway.serve_by(0, cors=Cors())
    client = await gateway.client()
    answer = await client.ask(get("/", "Origin: https://app.example"))
    assert answer.status == 503
    assert answer["Access-Control-Allow-Origin"] == "*"


async def test_without_cors_options_and_its_fields_are_the_replicas(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get("/", "Origin: https://app.example", method="OPTIONS"))
    wire, _ = await replica.request()
    await wire.send(reply(b"", "Access-Control-Allow-Origin: https://own.example"))
    answer = await client.message()
    assert answer["Access-Control-Allow-Origin"] == "https://own.example"


# --- limits


async def test_the_longest_prefix_limits(gateway: Gateway) -> None:
    replica = await gateway.serve(
        rate_limits=(RateLimit("/", 1000, 1000), RateLimit("/v1/", 0.1, 1))
    )
    replica.answers = reply()
    client = await gateway.client()
    statuses = [(await client.ask(get("/v1/x"))).status for _ in range(3)]
    assert statuses == [200, 200, 429]
    assert (await client.ask(get("/other"))).status == 200
    assert (await client.ask(get("/%761/x"))).status == 429
    assert (await client.ask(get("/x/../v1/x"))).status == 429


async def test_a_header_that_is_not_there_is_not_limited(gateway: Gateway) -> None:
    replica = await gateway.serve(rate_limits=(RateLimit("/", 0.1, 0, header="x-key"),))
    replica.answers = reply()
    client = await gateway.client()
    for _ in range(3):
        assert (await client.ask(get())).status == 200
    assert (await client.ask(get("/", "X-Key: "))).status == 200
    assert (await client.ask(get("/", "X-Key: a"))).status == 200
    assert (await client.ask(get("/", "x-key: a"))).status == 429
    assert (await client.ask(get("/", "X-Key: b"))).status == 200


async def test_a_token_has_one_bucket_however_it_is_written(gateway: Gateway) -> None:
    limits = (RateLimit("/", 0.1, 0, header="authorization"),)
    replica = await gateway.serve(rate_limits=limits)
    replica.answers = reply()
    client = await gateway.client()
    for field, status in (
        ("Authorization: Bearer sesame", 200),
        ("Authorization: bearer sesame", 429),
        ("authorization: BEARER   sesame", 429),
        ("Authorization: Bearer Sesame", 200),
        ("Authorization: Basic sesame", 200),
        ("Authorization: Basic sesame", 429),
        ("Authorization: ", 200),
        ("Authorization: ", 200),
    ):
        assert (await client.ask(get("/", field))).status == status, field


async def test_limits_by_address_count_the_client_behind_a_trusted_proxy(
    gateway: Gateway,
) -> None:
    gateway.trusted_proxies = ("127.0.0.0/8",)
    replica = await gateway.serve(rate_limits=(RateLimit("/", 0.1, 0),))
    replica.answers = reply()
    client = await gateway.client()
    for address in ("192.0.2.1", "192.0.2.2"):
        assert (await client.ask(get("/", f"X-Forwarded-For: {address}"))).status == 200
    answer = await client.ask(get("/", "X-Forwarded-For: 9.9.9.9, 192.0.2.2"))
    assert answer.status == 429


# --- tokens


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR"])
async def test_the_scheme_is_read_in_any_case(gateway: Gateway, scheme: str) -> None:
    gateway.auth = ALICE
    replica = await gateway.serve(auth=True)
    replica.answers = reply()
    client = await gateway.client()
    assert (await client.ask(get("/", f"Authorization: {scheme} sesame"))).status == 200
    assert "Authorization" not in replica.requests[0]


@pytest.mark.parametrize(
    "value",
    [
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Bearer sesam",
        "Bearer sesame2",
        "Bearer SESAME",
        "Bearer sesame sesame",
        "Basic sesame",
        "sesame",
        "Bearersesame",
        "Bearer,sesame",
    ],
)
async def test_anything_else_is_401(gateway: Gateway, value: str) -> None:
    gateway.auth = ALICE
    replica = await gateway.serve(auth=True)
    client = await gateway.client()
    assert (await client.ask(get("/", f"Authorization: {value}"))).status == 401
    assert replica.untouched


async def test_a_service_without_auth_asks_for_nothing_and_keeps_the_header(
    gateway: Gateway,
) -> None:
    gateway.auth = ALICE
    replica = await gateway.serve(auth=False)
    replica.answers = reply()
    client = await gateway.client()
    assert (await client.ask(get("/", "Authorization: Basic eA=="))).status == 200
    assert replica.requests[0]["Authorization"] == "Basic eA=="


async def test_a_token_is_forwarded_only_when_asked_for(gateway: Gateway) -> None:
    gateway.auth = TokensAuth(ALICE.tokens, forward=True)
    replica = await gateway.serve(auth=True)
    replica.answers = reply()
    client = await gateway.client()
    assert (await client.ask(get("/", "Authorization: Bearer sesame"))).status == 200
    assert replica.requests[0]["Authorization"] == "Bearer sesame"
