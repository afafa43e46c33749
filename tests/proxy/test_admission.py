"""The order of refusals, what a refusal says, and the id of every request."""

from __future__ import annotations

import hashlib
import json

import pytest
from conversation import Message, get, reply
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
