"""The way through a router: what it is told, and what becomes of answers that no replica made."""

from __future__ import annotations

import json

import pytest
from conversation import Replica, Wire, chunked, get, post, reply
from harness import Gateway
from waiting import until

from gatewayd.core.model import Endpoint, RouterTraits, TokensAuth, UnixAddress, Upstream

TRAITS = RouterTraits(
    request_headers=((b"authorization", b"Bearer routers-own-key"),),
    strip_request=frozenset({b"authorization", b"x-r-target"}),
    strip_request_prefixes=(b"x-r-",),
    strip_response=frozenset({b"vary", b"server", b"x-r-error", b"access-control-allow-origin"}),
    error_header=b"x-r-error",
    unsent_errors=frozenset({b"no_targets"}),
    token_header=b"x-request-id-r",
    allowed_paths=("/v1/",),
)
BODY = b'{"prompt": "hello"}'


class Routed:
    """The service `chat` with a scripted router in front of scripted replicas."""

    def __init__(self, gateway: Gateway, router: Replica, replicas: list[Replica]) -> None:
        self.gateway = gateway
        self.router = router
        self.replicas = replicas

    def publish(self) -> None:
        gateway = self.gateway
        service = gateway.services["chat"]
        endpoints = tuple(gateway.endpoint(r) for r in service.replicas)
        index = gateway._indexes.setdefault("@router", 100)
        router = Endpoint("@router", UnixAddress(str(self.router.path)), index, reuse_s=30.0)
        gateway.upstreams["chat"] = Upstream(endpoints, service.balance, router, TRAITS, "through")
        gateway.publish()

    async def ask(self, request: bytes) -> Wire:
        client = await self.gateway.client()
        await client.send(request)
        return client


@pytest.fixture
async def routed(gateway: Gateway) -> Routed:
    router = await gateway.add_replica("router")
    replicas = await gateway.serve_by(2, model="m", balance="round_robin")
    result = Routed(gateway, router, replicas)
    result.publish()
    return result


def failed(code: str, status: str = "503 Service Unavailable", *fields: str) -> bytes:
    return reply(b"POST http://127.0.0.1:10001/v1/x failed", f"X-R-Error: {code}", *fields,
                 status=status)  # fmt: skip


# --- what the router is told


async def test_an_answer_of_a_replica_passes_and_names_it(routed: Routed) -> None:
    client = await routed.ask(post(BODY, "/v1/chat/completions"))
    wire, request = await routed.router.request()
    assert request.body == BODY
    assert request["Authorization"] == "Bearer routers-own-key"
    assert not request.closes
    assert routed.gateway.load("@router") == 1
    await wire.send(
        reply(
            b"token",
            "X-Gatewayd-Replica: chat-b",
            "Vary: Origin",
            "Server: router",
            "Access-Control-Allow-Origin: *",
            "X-Own: yes",
        )
    )
    answer = await client.message()
    assert (answer.status, answer.body, answer["X-Own"]) == (200, b"token", "yes")
    for name in ("Vary", "Server", "Access-Control-Allow-Origin", "X-Gatewayd-Replica"):
        assert name not in answer
    assert routed.gateway.load("@router") == 0


async def test_a_client_cannot_steer_the_router_or_pass_for_it(routed: Routed) -> None:
    client = await routed.ask(
        get(
            "/v1/x",
            "Authorization: Bearer clients",
            "X-R-Target: http://10.0.0.1/",
            "x-r-Anything: 1",
            "X-Request-Id-R: forged",
            "X-Other: kept",
        )
    )
    wire, request = await routed.router.request()
    assert request["Authorization"] == "Bearer routers-own-key"
    assert "X-R-Target" not in request
    assert "X-R-Anything" not in request
    assert "forged" not in request.all("X-Request-Id-R")
    assert request["X-Other"] == "kept"
    await wire.send(reply())
    assert (await client.message()).status == 200


async def test_the_routers_connection_is_used_again_for_posts(routed: Routed) -> None:
    client = await routed.ask(post(BODY, "/v1/x"))
    wire, _ = await routed.router.request()
    for _ in range(3):
        await wire.send(reply())
        assert (await client.message()).status == 200
        await client.send(post(BODY, "/v1/x"))
        assert (await wire.message()).body == BODY
    await wire.send(reply())
    assert (await client.message()).status == 200
    assert len(routed.router.wires) == 1


async def test_a_stream_passes_event_by_event(routed: Routed) -> None:
    client = await routed.ask(post(BODY, "/v1/x"))
    wire, _ = await routed.router.request()
    await wire.send(reply(b"", "Content-Type: text/event-stream", framing="chunked")[:-5])
    await client.upto(b"\r\n\r\n")
    for event in (b"data: 1\n\n", b"data: 2\n\n"):
        await wire.send(chunked(event)[:-5])
        await client.expect(chunked(event)[:-5])
    await wire.send(b"0\r\n\r\n")
    await client.expect(b"0\r\n\r\n")


async def test_a_stream_cut_behind_the_router_is_cut_for_the_client(routed: Routed) -> None:
    client = await routed.ask(post(BODY, "/v1/x"))
    wire, _ = await routed.router.request()
    answer = reply(b"", "X-Gatewayd-Replica: chat-a", framing="chunked")
    await wire.send(answer[:-5] + chunked(b"part")[:-5])
    await client.upto(b"part\r\n")
    wire.close()
    assert await client.gone() == b""
    # As without a router: it counts for the replica.
    assert routed.gateway.totals().upstream_errors == {("chat-a", "reset"): 1}


# --- answers that no replica made


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        (failed("call_upstream_request_error", "500 Oops"), 502, "upstream_error"),
        (failed("internal_error", "500 Oops"), 502, "upstream_error"),
        (failed("timeout", "504 Gateway Timeout"), 504, "upstream_timeout"),
        (reply(b"x", "X-Gatewayd-Failure: closed", "X-Gatewayd-Replica: chat-a",
               status="502 Bad"), 502, "upstream_error"),
        (reply(b"x", "X-Gatewayd-Failure: first_byte_timeout", "X-Gatewayd-Replica: chat-a",
               status="504 Late"), 504, "upstream_timeout"),
    ],
)  # fmt: skip
async def test_an_error_of_the_router_becomes_ours(
    routed: Routed, answer: bytes, status: int, code: str
) -> None:
    client = await routed.ask(post(BODY, "/v1/x"))
    wire, _ = await routed.router.request()
    await wire.send(answer)
    told = await client.message()
    assert told.status == status
    assert json.loads(told.body)["error"]["code"] == code
    assert b"127.0.0.1" not in told.body
    assert "X-R-Error" not in told
    assert "X-Gatewayd-Failure" not in told
    assert not told.closes
    for replica in routed.replicas:
        assert replica.untouched  # it may have worked on the request: nobody gets it again


async def test_an_error_of_a_replica_passes_as_it_is(routed: Routed) -> None:
    client = await routed.ask(post(BODY, "/v1/x"))
    wire, _ = await routed.router.request()
    await wire.send(reply(b"out of memory", "X-Gatewayd-Replica: chat-a", status="500 Oops"))
    answer = await client.message()
    assert (answer.status, answer.body) == (500, b"out of memory")
    assert routed.gateway.totals().upstream_errors == {}


async def test_a_4xx_of_the_router_passes(routed: Routed) -> None:
    client = await routed.ask(post(BODY, "/v1/x"))
    wire, _ = await routed.router.request()
    await wire.send(failed("bad_request", "400 Bad Request"))
    answer = await client.message()
    assert answer.status == 400
    assert "X-R-Error" not in answer


UNSENT = {
    "the router had no target": failed("no_targets"),
    "the replica refused": reply(
        b"x", "X-Gatewayd-Failure: connect", "X-Gatewayd-Replica: chat-a", status="502 Bad"
    ),
    "the replica took no connection": reply(
        b"x", "X-Gatewayd-Failure: connect_timeout", "X-Gatewayd-Replica: chat-a", status="504 Late"
    ),
}


@pytest.mark.parametrize("answer", UNSENT.values(), ids=UNSENT)
@pytest.mark.parametrize(
    "request_",
    [
        post(BODY, "/v1/x"),
        get("/v1/x", "Transfer-Encoding: chunked", method="POST") + chunked(BODY),
        post(b"x" * 300_000, "/v1/x"),
        get("/v1/models"),
    ],
    ids=["post", "chunked", "large", "get"],
)
async def test_what_reached_no_replica_goes_straight_to_one(
    routed: Routed, answer: bytes, request_: bytes
) -> None:
    client = await routed.ask(request_)
    wire, first = await routed.router.request()
    for replica in routed.replicas:
        replica.answers = lambda request: reply(b"straight")
    await wire.send(answer)
    assert (await client.message()).body == b"straight"
    requests = [request for replica in routed.replicas for request in replica.requests]
    assert len(requests) == 1
    assert requests[0].body == first.body
    assert requests[0].target == first.target
    assert "Authorization" not in requests[0]
    assert "X-Request-Id-R" not in requests[0]
    if b"chat-a" in answer:
        assert routed.replicas[0].untouched  # it has just refused
    totals = routed.gateway.totals()
    assert (totals.ways, totals.codes) == ({"fallback": 1}, {200: 1})


async def test_a_body_that_still_arrives_is_sent_again_from_its_start(routed: Routed) -> None:
    client = await routed.ask(post(BODY, "/v1/x")[:-10])
    wire = await routed.router.accept()
    await wire.upto(BODY[:-10])
    for replica in routed.replicas:
        replica.answers = lambda request: reply(request.body)
    await wire.send(failed("no_targets"))
    await client.send(BODY[-10:])
    assert (await client.message()).body == BODY


async def test_a_body_too_large_to_keep_is_not_sent_again(routed: Routed) -> None:
    size = 4_000_000
    client = await routed.ask(get("/v1/x", f"Content-Length: {size}", method="POST"))
    wire = await routed.router.accept()
    await wire.upto(b"\r\n\r\n")
    await client.send(b"x" * (size - 1))
    await wire.exactly(size - 1)
    await wire.send(failed("no_targets"))
    answer = await client.message()
    assert answer.status == 502
    for replica in routed.replicas:
        assert replica.untouched


async def test_a_router_that_refuses_connections_is_gone_past(routed: Routed) -> None:
    routed.router.stop_listening()
    for replica in routed.replicas:
        replica.answers = reply(b"straight")
    client = await routed.ask(post(BODY, "/v1/x"))
    assert (await client.message()).body == b"straight"
    assert routed.gateway.totals().ways == {"fallback": 1}


async def test_a_replica_that_refuses_behind_a_router_that_does_is_left_for_the_next(
    routed: Routed,
) -> None:
    routed.router.stop_listening()
    routed.replicas[1].stop_listening()
    routed.replicas[0].answers = reply(b"a")
    client = await routed.ask(post(BODY, "/v1/x"))
    assert (await client.message()).body == b"a"


async def test_a_router_that_breaks_behind_the_request_is_not_gone_past(routed: Routed) -> None:
    client = await routed.ask(post(BODY, "/v1/x"))
    wire, _ = await routed.router.request()
    wire.close()
    assert (await client.message()).status == 502
    for replica in routed.replicas:
        assert replica.untouched


async def test_a_client_that_leaves_lets_the_router_go(routed: Routed) -> None:
    client = await routed.ask(post(BODY, "/v1/x"))
    wire, _ = await routed.router.request()
    client.close()
    assert await wire.gone() == b""
    await until(lambda: not routed.gateway.load("@router"))


async def test_paths_and_tokens_are_decided_before_the_router(gateway: Gateway) -> None:
    gateway.auth = TokensAuth(())
    router = await gateway.add_replica("router")
    replicas = await gateway.serve_by(1, model="m", auth=True, allowed_paths=("/v1/",))
    routed = Routed(gateway, router, replicas)
    routed.publish()
    client = await gateway.client()
    assert (await client.ask(get("/flush_cache"))).status == 403
    assert (await client.ask(get("/v1/models"))).status == 401
    assert router.untouched


async def test_without_replicas_the_router_is_not_asked(routed: Routed) -> None:
    routed.gateway.change(replicas=())
    routed.publish()
    client = await routed.ask(get("/v1/x"))
    answer = await client.message()
    assert answer.status == 503
    assert json.loads(answer.body)["error"]["code"] == "no_ready_replica"
    assert routed.router.untouched
