"""The model endpoint on the wire: which service a request becomes one of, and what it is refused.

The domain is gateway.example; services answer at their own as well.
"""

from __future__ import annotations

import json

import pytest
from conversation import chunked, post, reply
from endpoint import ALICE, CHAT, HOST, ask, chat, error, open_endpoint
from harness import Gateway

from gatewayd.core.entrypoint import Entrypoint, ModelEntry, OpenAiFormat, TgiFormat

# --- models


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_models_are_listed_by_name(gateway: Gateway, prefix: str) -> None:
    await open_endpoint(gateway)
    gateway.models.append(ModelEntry("main", "a/b", "chat", 1600000000))
    gateway.models.append(ModelEntry("main", "gone", "nobody", 1))
    gateway.models.append(ModelEntry("other", "theirs", "chat", 1))
    gateway.publish()
    client = await gateway.client()
    answer = await client.ask(ask("GET", f"{prefix}/models"))
    assert answer.status == 200
    a_b = {"object": "model", "id": "a/b", "created": 1600000000, "owned_by": "main"}
    m = {"object": "model", "id": "m", "created": 1700000000, "owned_by": "main"}
    assert json.loads(answer.body) == {"object": "list", "data": [a_b, m]}
    for path in ("models/a/b", "models/a%2Fb"):
        answer = await client.ask(ask("GET", f"{prefix}/{path}"))
        assert json.loads(answer.body) == a_b


async def test_a_model_that_nobody_serves_is_404(gateway: Gateway) -> None:
    replica = await open_endpoint(gateway)
    client = await gateway.client()
    for request in (ask("GET", "/models/x"), chat(b'{"model": "x"}')):
        answer = await client.ask(request)
        assert answer.status == 404
        assert error(answer)["code"] == "model_not_found"
        assert error(answer)["message"] == "Model x not found in project main"
    assert replica.untouched


async def test_an_endpoint_without_models(gateway: Gateway) -> None:
    gateway.entrypoints.append(Entrypoint("main", HOST))
    gateway.publish()
    client = await gateway.client()
    answer = await client.ask(ask("GET", "/models"))
    assert json.loads(answer.body) == {"object": "list", "data": []}
    assert (await client.ask(chat())).status == 404


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1", 404),
        ("GET", "/v1/models/", 404),
        ("POST", "/v1/audio/speech", 404),
        ("POST", "/v1/v1/completions", 404),
        ("POST", "/models", 405),
        ("GET", "/v1/chat/completions", 405),
    ],
)
async def test_nothing_else_is_there(gateway: Gateway, method: str, path: str, status: int) -> None:
    replica = await open_endpoint(gateway)
    client = await gateway.client()
    answer = await client.ask(ask(method, path))
    assert answer.status == status
    assert ("Allow" in answer) == (status == 405)
    assert error(answer)
    assert replica.untouched


# --- requests of the service


@pytest.mark.parametrize("prefix", ["", "/v1"])
@pytest.mark.parametrize(
    "operation", ["chat/completions", "completions", "embeddings", "responses"]
)
async def test_a_request_becomes_one_of_the_model_s_service(
    gateway: Gateway, prefix: str, operation: str
) -> None:
    replica = await open_endpoint(gateway)
    client = await gateway.client()
    body = b' {"x": {"model": "y"}, "z": [1.50, "\\u00e4"],"model":"m" , "tools": [{}]} '
    await client.send(chat(body, "X-A: b", path=f"{prefix}/{operation}?q=1"))
    wire, request = await replica.request()
    assert request.start == f"POST /v1/{operation}?q=1 HTTP/1.1"
    assert request["Host"] == "chat.example"
    assert request["X-A"] == "b"
    assert request.body == body
    await wire.send(reply(b'{"any": "thing"}', "Content-Type: application/json"))
    answer = await client.message()
    assert (answer.status, answer.body) == (200, b'{"any": "thing"}')
    assert gateway.totals().codes == {200: 1}
    assert gateway.totals().bytes_in == len(body)
    assert gateway.totals("").codes == {}


async def test_the_model_s_own_prefix_is_where_its_service_answers(gateway: Gateway) -> None:
    replica = await open_endpoint(gateway)
    gateway.models[:] = [ModelEntry("main", "m", "chat", 1, OpenAiFormat("/llm/"))]
    gateway.publish()
    client = await gateway.client()
    await client.send(chat())
    wire, request = await replica.request()
    assert request.target == "/llm/chat/completions"
    await wire.send(reply())
    assert (await client.message()).status == 200


async def test_a_body_is_read_only_up_to_its_model(gateway: Gateway) -> None:
    replica = await open_endpoint(gateway)
    client = await gateway.client()
    begun, rest = b'{"model": "m", "messages"', b": []}"
    head = ask("POST", "/chat/completions", f"Content-Length: {len(begun + rest)}")
    await client.send(head + begun)
    wire = await replica.accept()
    assert (await wire.upto(begun)).endswith(b"\r\n\r\n" + begun)
    await client.send(rest)
    await wire.expect(rest)
    await wire.send(reply())
    assert (await client.message()).status == 200


@pytest.mark.parametrize("piece", [1, 7, 1000])
async def test_a_model_may_come_in_pieces(gateway: Gateway, piece: int) -> None:
    replica = await open_endpoint(gateway)
    client = await gateway.client()
    body = b'{"messages": ["' + b"x" * 3000 + b'"], "model": "m"}'
    pieces = [body[i : i + piece] for i in range(0, len(body), piece)]
    sent = chunked(*pieces)
    await client.send(ask("POST", "/chat/completions", "Transfer-Encoding: chunked"))
    for start in range(0, len(sent), 500):
        await client.send(sent[start : start + 500])
    wire, request = await replica.request()
    assert request.body == body
    await wire.send(reply())
    assert (await client.message()).status == 200


async def test_a_client_may_wait_for_the_word_to_go_on(gateway: Gateway) -> None:
    replica = await open_endpoint(gateway)
    client = await gateway.client()
    await client.send(
        ask("POST", "/completions", f"Content-Length: {len(CHAT)}", "Expect: 100-continue")
    )
    assert (await client.message()).status == 100
    await client.send(CHAT)
    wire, request = await replica.request()
    assert request.body == CHAT
    await wire.send(reply())
    assert (await client.message()).status == 200


async def test_a_stream_passes_as_it_came(gateway: Gateway) -> None:
    replica = await open_endpoint(gateway)
    client = await gateway.client()
    await client.send(chat())
    wire, _ = await replica.request()
    await wire.send(reply(b"", "Content-Type: text/event-stream", framing="chunked")[:-5])
    head = await client.upto(b"\r\n\r\n")
    assert b"X-Accel-Buffering: no\r\n" in head
    for event in (b'data: {"a": 1}\n\n', b": keep\n\n", b"data: [DONE]\n\n"):
        framed = b"%x\r\n%b\r\n" % (len(event), event)
        await wire.send(framed)
        await client.expect(framed)
    await wire.send(b"0\r\n\r\n")
    await client.expect(b"0\r\n\r\n")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"no json",
        b'{"model": 1}',
        b'{"model": null}',
        b'{"model": ""}',
        b'{"model": {"model": "m"}}',
        b'["model", "m"]',
        b'{"x": "\\"model\\": \\"m\\""}',
        b'{"model": "m',
        b'{"model": "' + b"m" * 2_000_000 + b'"}',
    ],
    ids=lambda body: body[:20].decode(),
)
async def test_a_body_without_a_model_is_400(gateway: Gateway, body: bytes) -> None:
    replica = await open_endpoint(gateway)
    client = await gateway.client()
    answer = await client.ask(chat(body))
    assert answer.status == 400
    assert error(answer)["type"] == "invalid_request_error"
    assert replica.untouched


async def test_an_answer_of_the_replica_that_is_an_error_stays_as_it_is(gateway: Gateway) -> None:
    replica = await open_endpoint(gateway)
    client = await gateway.client()
    await client.send(chat())
    wire, _ = await replica.request()
    await wire.send(reply(b'{"detail": "too long"}', status="422 Unprocessable Entity"))
    answer = await client.message()
    assert (answer.status, answer.body) == (422, b'{"detail": "too long"}')


async def test_a_second_request_on_the_connection(gateway: Gateway) -> None:
    replica = await open_endpoint(gateway)
    replica.answers = reply(b"yes")
    client = await gateway.client()
    await client.send(chat() + ask("GET", "/models") + chat())
    assert (await client.message()).body == b"yes"
    assert json.loads((await client.message()).body)["object"] == "list"
    assert (await client.message()).body == b"yes"


# --- clients that leave, or break


async def test_a_client_that_leaves_before_its_model_came(gateway: Gateway) -> None:
    replica = await open_endpoint(gateway)
    client = await gateway.client()
    await client.send(ask("POST", "/completions", "Content-Length: 100") + b'{"x": ')
    client.reset()
    await gateway.settle_clients()
    assert replica.untouched
    assert gateway.totals("").codes == {499: 1}


async def test_a_body_that_stops_arriving_is_408(gateway: Gateway) -> None:
    gateway.limit(body_idle_timeout=0.05)
    await open_endpoint(gateway)
    client = await gateway.client()
    answer = await client.ask(ask("POST", "/completions", "Content-Length: 100") + b'{"x": ')
    assert answer.status == 408
    assert error(answer)["code"] == "request_timeout"


async def test_a_body_that_breaks_its_framing_is_400(gateway: Gateway) -> None:
    await open_endpoint(gateway)
    client = await gateway.client()
    await client.send(ask("POST", "/completions", "Transfer-Encoding: chunked") + b"1\r\n{\r\n")
    answer = await client.ask(b"zz\r\n")
    assert answer.status == 400
    assert answer.closes


# --- browsers


async def test_a_preflight_needs_no_token(gateway: Gateway) -> None:
    gateway.auth = ALICE
    replica = await open_endpoint(gateway)
    client = await gateway.client()
    answer = await client.ask(ask("OPTIONS", "/any/path", "Origin: https://app.example"))
    assert answer.status == 204
    assert answer["Access-Control-Allow-Origin"] == "*"
    assert answer["Access-Control-Allow-Headers"] == "*"
    assert answer["Access-Control-Allow-Methods"] == (
        "GET, POST, PUT, DELETE, PATCH, OPTIONS, HEAD"
    )
    assert answer["Access-Control-Max-Age"] == "600"
    assert replica.untouched


async def test_browsers_may_read_every_answer(gateway: Gateway) -> None:
    gateway.auth = ALICE
    replica = await open_endpoint(gateway)
    replica.answers = reply(b"{}", "Access-Control-Allow-Origin: https://theirs.example")
    client = await gateway.client()
    for request in (
        ask("GET", "/models"),
        chat(CHAT, "Authorization: Bearer sesame"),
        chat(b"{}", "Authorization: Bearer sesame"),
    ):
        answer = await client.ask(request)
        assert answer["Access-Control-Allow-Origin"] == "*"
    answer = await client.ask(post(b"{}"))  # at the service's own host, which has no `cors`
    assert answer["Access-Control-Allow-Origin"] == "https://theirs.example"


# --- hosts, and other formats


async def test_a_service_at_the_same_host_comes_first(gateway: Gateway) -> None:
    replica = await open_endpoint(gateway, domains=(HOST,))
    replica.answers = reply(b"the service")
    client = await gateway.client()
    assert (await client.ask(ask("GET", "/models"))).body == b"the service"


async def test_a_model_of_another_format_offers_chat_only(gateway: Gateway) -> None:
    await open_endpoint(gateway)
    gateway.models[:] = [ModelEntry("main", "m", "chat", 1, TgiFormat("", "</s>"))]
    gateway.publish()
    client = await gateway.client()
    answer = await client.ask(chat(path="/embeddings"))
    assert answer.status == 404
    assert error(answer)["message"] == "Model m does not offer embeddings"
