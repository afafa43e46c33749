"""The order of refusals, what a refusal says, and everything decided before a replica is asked."""

from __future__ import annotations

import hashlib
import json

import pytest
from conversation import Message, chunked, get, post, reply
from harness import Gateway

from gatewayd.core.model import Cors, RateLimit, Token, TokensAuth

ALICE = TokensAuth((Token("alice", hashlib.sha256(b"sesame").digest()),))
ONCE = (RateLimit("/", 1, 0),)  # after the first request a bucket is full for a second


def error_of(answer: Message) -> dict[str, object]:
    assert answer["Content-Type"] == "application/json"
    body = json.loads(answer.body)
    assert list(body) == ["error"]
    assert list(body["error"]) == ["message", "type", "param", "code"]
    assert body["error"]["param"] is None
    return body["error"]


# --- the order

MALFORMED = b"GET / HTTP/1.1\r\nHost: chat.example\r\nHost: b\r\n\r\n"


async def test_malformed_goes_before_an_unknown_host(gateway: Gateway) -> None:
    client = await gateway.client()
    assert (await client.ask(MALFORMED.replace(b"chat", b"none"))).status == 400


class Refusing:
    """A service that refuses for every reason at once, and requests that deserve fewer of them."""

    TOO_LARGE = 100

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    async def serve(self) -> None:
        self.gateway.auth = ALICE
        await self.gateway.serve_by(
            0,
            auth=True,
            client_max_body_size=10,
            cors=Cors(),
            allowed_paths=("/v1/",),
            rate_limits=ONCE,
        )

    async def status(self, request: bytes) -> int:
        client = await self.gateway.client()
        return (await client.ask(request)).status


async def test_each_refusal_goes_before_the_next(gateway: Gateway) -> None:
    refusing = Refusing(gateway)
    await refusing.serve()
    allowed = "Authorization: Bearer sesame"
    large = "Content-Length: 100"
    # An unknown host before the size of the body.
    assert await refusing.status(get("/x", large, host="none.example", method="POST")) == 404
    # The body's size before the preflight, the path, the limit, the token and the replica.
    assert await refusing.status(get("/x", large, method="OPTIONS")) == 413
    # The preflight before the path, the limit and the token.
    assert await refusing.status(get("/x", method="OPTIONS")) == 204
    # The path before the limit: none of these counted.
    for _ in range(3):
        assert await refusing.status(get("/x")) == 403
    # The token after the limit, which counts requests without one.
    assert await refusing.status(get("/v1/x")) == 401
    assert await refusing.status(get("/v1/x")) == 429
    assert await refusing.status(get("/v1/x", allowed)) == 429
    # The replica after the token.
    gateway.change(rate_limits=())
    assert await refusing.status(get("/v1/x", "Authorization: Bearer wrong")) == 401
    assert await refusing.status(get("/v1/x", allowed)) == 503
    totals = gateway.totals()
    assert totals.rejections == {
        "body_size": 1,
        "path": 3,
        "auth": 2,
        "rate_limit": 2,
        "no_replica": 1,
    }
    assert totals.codes == {413: 1, 204: 1, 403: 3, 401: 2, 429: 2, 503: 1}
    assert gateway.totals("").codes == {404: 1}


# --- what a refusal says


async def test_a_missing_token_is_401_with_its_challenge(gateway: Gateway) -> None:
    gateway.auth = ALICE
    await gateway.serve(auth=True, model="m")
    client = await gateway.client()
    answer = await client.ask(get("/v1/models"))
    assert answer.status == 401
    assert answer["WWW-Authenticate"] == "Bearer"
    error = error_of(answer)
    assert (error["code"], error["type"]) == ("invalid_api_key", "authentication_error")
    assert not answer.closes


async def test_a_path_that_is_not_served_is_403(gateway: Gateway) -> None:
    await gateway.serve(model="m", allowed_paths=("/v1/",))
    client = await gateway.client()
    answer = await client.ask(get("/flush_cache"))
    assert answer.status == 403
    assert error_of(answer)["code"] == "forbidden"


async def test_no_replica_is_503_with_a_time_to_come_back(gateway: Gateway) -> None:
    await gateway.serve_by(0, model="m")
    client = await gateway.client()
    answer = await client.ask(get("/v1/models"))
    assert answer.status == 503
    assert int(answer["Retry-After"]) > 0
    assert error_of(answer)["code"] == "no_ready_replica"


async def test_too_many_requests_are_429_with_the_buckets_own_time(gateway: Gateway) -> None:
    await gateway.serve_by(0, model="m", rate_limits=(RateLimit("/", 0.1, 0),))
    client = await gateway.client()
    assert (await client.ask(get())).status == 503
    answer = await client.ask(get())
    assert answer.status == 429
    assert 9 <= int(answer["Retry-After"]) <= 10  # one request in ten seconds
    assert error_of(answer)["code"] == "rate_limit_exceeded"


async def test_others_are_told_in_one_line_of_text_or_in_json_if_they_accept_it(
    gateway: Gateway,
) -> None:
    await gateway.serve_by(0)
    client = await gateway.client()
    answer = await client.ask(get())
    assert answer["Content-Type"] == "text/plain; charset=utf-8"
    assert answer.body.endswith(b"(no_ready_replica)\n")
    assert answer.body.count(b"\n") == 1
    answer = await client.ask(get("/", "Accept: application/json"))
    assert error_of(answer)["code"] == "no_ready_replica"


async def test_the_answer_to_head_says_how_long_it_would_be(gateway: Gateway) -> None:
    await gateway.serve_by(0)
    client = await gateway.client()
    answer = await client.ask(get(method="HEAD"))
    assert answer.status == 503
    assert int(answer["Content-Length"]) > 0
    assert (await client.ask(get())).status == 503  # nothing of a body lay between


async def test_a_replica_that_fails_is_502_without_a_word_about_itself(gateway: Gateway) -> None:
    replica = await gateway.serve(model="m")
    replica.stop_listening()
    client = await gateway.client()
    answer = await client.ask(get())
    assert answer.status == 502
    assert error_of(answer)["code"] == "upstream_error"
    assert str(gateway.directory).encode() not in answer.body
    assert b"Traceback" not in answer.body


async def test_a_fault_of_ours_is_500_and_told_to_the_operator_alone(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a secret of the implementation")

    replica = await gateway.serve(model="m", rate_limits=(RateLimit("/", 1, 1),))
    monkeypatch.setattr("gatewayd.proxy.admit.longest_prefix", broken)
    client = await gateway.client()
    answer = await client.ask(get())
    assert (answer.status, answer.closes) == (500, True)
    assert error_of(answer)["code"] == "internal_error"
    assert b"secret" not in answer.body
    assert "a secret of the implementation" in caplog.text
    assert replica.untouched
    assert gateway.totals().codes == {500: 1}
    caplog.clear()


# --- hosts


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_the_root_of_an_unknown_host_is_200_for_load_balancers(
    gateway: Gateway, method: str
) -> None:
    await gateway.serve()
    client = await gateway.client()
    answer = await client.ask(get("/", host="192.0.2.7", method=method))
    assert answer.status == 200
    assert answer.body.count(b"\n") == (method == "GET")


@pytest.mark.parametrize(
    "request_",
    [
        get("/x", host="192.0.2.7"),
        get("/?x", host="192.0.2.7"),
        post(b"", host="192.0.2.7"),
        get("/", host="other.example").replace(b"GET", b"DELETE"),
    ],
)
async def test_anything_else_of_an_unknown_host_is_404(gateway: Gateway, request_: bytes) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    answer = await client.ask(request_)
    assert answer.status == 404
    assert replica.untouched


@pytest.mark.parametrize(
    "host",
    ["chat.example:8080", "chat.example.", "CHAT.Example", "Chat.EXAMPLE.:80", "chat.example:"],
)
async def test_a_host_is_found_with_port_dot_and_any_case(gateway: Gateway, host: str) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get("/", host=host))
    wire, request = await replica.request()
    assert request["Host"].lower().startswith("chat.example")
    await wire.send(reply())
    assert (await client.message()).status == 200


async def test_several_hosts_on_one_connection(gateway: Gateway) -> None:
    chat = await gateway.serve("chat")
    other = await gateway.serve("other")
    chat.answers, other.answers = reply(b"chat"), reply(b"other")
    client = await gateway.client()
    for name in ("chat", "other", "chat", "chat", "nobody", "other"):
        answer = await client.ask(get("/p", host=f"{name}.example"))
        assert answer.body == name.encode() if name != "nobody" else answer.status == 404
    assert {r["Host"] for r in chat.requests} == {"chat.example"}
    assert {r["X-Forwarded-Host"] for r in other.requests} == {"other.example"}


@pytest.mark.parametrize(
    ("target", "sent"),
    [
        ("http://chat.example/a/b?c", "/a/b?c"),
        ("http://CHAT.example:80/a", "/a"),
        ("https://chat.example", "/"),
        ("http://chat.example?x=1", "/?x=1"),
    ],
)
async def test_the_absolute_form_becomes_the_origin_form(
    gateway: Gateway, target: str, sent: str
) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get(target))
    wire, request = await replica.request()
    assert request.target == sent
    await wire.send(reply())
    assert (await client.message()).status == 200


async def test_options_of_the_whole_server_travels(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get("*", method="OPTIONS"))
    wire, request = await replica.request()
    assert request.start == "OPTIONS * HTTP/1.1"
    await wire.send(reply())
    assert (await client.message()).status == 200


async def test_http_1_0_without_host_is_nobodys(gateway: Gateway) -> None:
    await gateway.serve()
    client = await gateway.client()
    await client.send(b"GET / HTTP/1.0\r\n\r\n")
    answer = await client.message()
    assert answer.status == 200
    assert answer.body == b"gatewayd\n"
    assert await client.rest() == b""


# --- paths


@pytest.mark.parametrize(
    ("target", "served"),
    [
        ("/v1/models", True),
        ("/v1/", True),
        ("/v1", False),
        ("/v1x", False),
        ("/generate", True),
        ("/generate?x=/../", True),
        ("/generate/", False),
        ("/generate/x", False),
        ("/gener%61te", True),
        ("/%67enerate", True),
        ("/v%31/models", True),
        ("//generate", True),
        ("/./generate", True),
        ("/x/../generate", True),
        ("/v1/../generate", True),
        ("/v1/../flush_cache", False),
        ("/v1/%2e%2e/flush_cache", False),
        ("/v1/.%2E/flush_cache", False),
        ("/v1//../flush_cache", False),
        ("/v1/x/../../flush_cache", False),
        ("/v1/./../flush_cache", False),
        ("/../flush_cache", False),
        ("/V1/models", False),
        ("/", False),
        ("/v1/..", False),
        ("/v1/.", True),
        ("/flush_cache?/v1/", False),
        ("/flush_cache;/v1/", False),
    ],
)
async def test_the_allow_list_sees_the_decoded_path_and_the_raw_one_travels(
    gateway: Gateway, target: str, served: bool
) -> None:
    replica = await gateway.serve(allowed_paths=("/generate", "/v1/"))
    client = await gateway.client()
    await client.send(get(target))
    if served:
        wire, request = await replica.request()
        assert request.target == target
        await wire.send(reply())
        assert (await client.message()).status == 200
    else:
        assert (await client.message()).status == 403
        assert replica.untouched


@pytest.mark.parametrize(
    ("target", "sent"),
    [
        ("/app/x?y=/app", "/x?y=/app"),
        ("/app", "/"),
        ("/app?y", "/?y"),
        ("/app/", "/"),
        ("/apple", "/apple"),
        ("/x/app", "/x/app"),
        ("/app/app/z", "/app/z"),
    ],
)
async def test_a_prefix_is_stripped_by_whole_segments(
    gateway: Gateway, target: str, sent: str
) -> None:
    replica = await gateway.serve(strip_prefix="/app/")
    client = await gateway.client()
    await client.send(get(target))
    wire, request = await replica.request()
    assert request.target == sent
    await wire.send(reply())
    assert (await client.message()).status == 200


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


# --- request ids


async def test_every_answer_and_every_request_upstream_carry_the_same_id(gateway: Gateway) -> None:
    replica = await gateway.serve()
    replica.answers = reply(b"ok", "X-Request-Id: the-replicas-own")
    client = await gateway.client()
    ids = []
    for _ in range(3):
        answer = await client.ask(get("/", "X-Request-Id: mine"))
        assert replica.requests[-1]["X-Request-Id"] == answer["X-Request-Id"]
        ids.append(answer["X-Request-Id"])
    assert len(set(ids)) == 3
    assert "mine" not in ids
    for refused in (get(host="none.example"), get("/x", host="none.example"), MALFORMED):
        ids.append((await client.ask(refused))["X-Request-Id"])
    assert len(set(ids)) == 6


@pytest.mark.parametrize(
    ("sent", "kept"),
    [("abc-DEF_1.2:3/4+5=@", True), ("x" * 128, True), ("x" * 129, False), ("a b", False),
     ("a\"b", False), ("", False), ("\xe4", False)],
)  # fmt: skip
async def test_a_sane_id_of_a_trusted_proxy_is_kept(
    gateway: Gateway, sent: str, kept: bool
) -> None:
    gateway.trusted_proxies = ("127.0.0.1/32",)
    replica = await gateway.serve()
    replica.answers = reply()
    client = await gateway.client()
    answer = await client.ask(get("/", f"X-Request-Id: {sent}"))
    assert (answer["X-Request-Id"] == sent) is kept
    assert answer["X-Request-Id"]
    assert replica.requests[0]["X-Request-Id"] == answer["X-Request-Id"]
