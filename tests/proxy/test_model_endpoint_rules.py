"""The endpoint of all models: what the service asks of a request, and the token."""

from __future__ import annotations

from pathlib import Path

import pytest
from conversation import Message, Replica, chunked, post, reply
from endpoint import ALICE, CHAT, ask, chat, error, open_endpoint
from harness import Gateway
from waiting import until

from gatewayd.core.entrypoint import ModelEntry
from gatewayd.core.model import DstackAuth, HttpAuth, RateLimit, UnixAddress

# --- what the service asks of requests


async def test_the_service_s_limits_count_here_and_there_together(gateway: Gateway) -> None:
    replica = await open_endpoint(gateway, rate_limits=(RateLimit("/v1/", 0.1, 1),))
    replica.answers = reply()
    client = await gateway.client()
    assert (await client.ask(chat())).status == 200
    assert (await client.ask(post(b"{}", "/v1/x"))).status == 200
    answer = await client.ask(chat())
    assert answer.status == 429
    assert error(answer)["code"] == "rate_limit_exceeded"
    assert int(answer["Retry-After"]) > 0
    assert gateway.totals().rejections == {"rate_limit": 1}


async def test_paths_that_the_service_does_not_serve_are_403(gateway: Gateway) -> None:
    replica = await open_endpoint(gateway, allowed_paths=("/v1/chat/",))
    replica.answers = reply()
    client = await gateway.client()
    assert (await client.ask(chat())).status == 200
    assert (await client.ask(chat(path="/v1/embeddings"))).status == 403


async def test_the_size_of_a_body_is_the_service_s(gateway: Gateway) -> None:
    replica = await open_endpoint(gateway, client_max_body_size=100)
    large = Replica("large", gateway.directory / "large.sock")
    await large.start()
    await gateway.serve("other", client_max_body_size=1000)
    gateway.models.append(ModelEntry("main", "large", "other", 1))
    gateway.publish()
    body = b'{"model": "m", "x": "' + b"x" * 200 + b'"}'
    for request in (
        chat(body),
        ask("POST", "/completions", "Transfer-Encoding: chunked") + chunked(body),
        chat(b'{"model": "large", "x": "' + b"x" * 2000 + b'"}'),
        ask("POST", "/completions", "Transfer-Encoding: chunked")
        + chunked(b'{"x": "' + b"x" * 2000),
    ):
        client = await gateway.client()
        answer = await client.ask(request)
        assert answer.status == 413
        assert error(answer)["code"] == "body_too_large"
    for wire in replica.wires:
        assert b"0\r\n\r\n" not in await wire.gone()
    await large.stop()


async def test_bodies_that_are_held_are_bounded_in_all(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gatewayd.proxy.models.HELD_MAX", 1000)
    replica = await open_endpoint(gateway)
    replica.answers = reply()
    begun = ask("POST", "/completions", "Content-Length: 900") + b'{"x": "' + b"x" * 800
    holder = await gateway.client()
    await holder.send(begun)
    await until(lambda: gateway.edge.held_size > 800)
    client = await gateway.client()
    answer = await client.ask(begun)
    assert answer.status == 503
    assert error(answer)["code"] == "overloaded"
    assert answer["Retry-After"] == "1"
    client = await gateway.client()
    assert (await client.ask(chat())).status == 200
    holder.reset()
    await until(lambda: not gateway.edge.held_size)


async def test_a_service_without_replicas_is_503(gateway: Gateway) -> None:
    await open_endpoint(gateway)
    gateway.change(replicas=())
    client = await gateway.client()
    answer = await client.ask(chat())
    assert answer.status == 503
    assert error(answer)["code"] == "no_ready_replica"
    assert gateway.totals().rejections == {"no_replica": 1}


async def test_a_replica_that_refuses_is_502(gateway: Gateway) -> None:
    replica = await open_endpoint(gateway)
    replica.stop_listening()
    client = await gateway.client()
    answer = await client.ask(chat())
    assert answer.status == 502
    assert error(answer)["code"] == "upstream_error"


# --- the token


async def test_a_token_is_needed_whatever_the_service_asks(gateway: Gateway) -> None:
    gateway.auth = ALICE
    replica = await open_endpoint(gateway, auth=False)
    replica.answers = reply()
    client = await gateway.client()
    for fields in ((), ("Authorization: Bearer wrong",), ("Authorization: Basic c2VzYW1l",)):
        for request in (chat(CHAT, *fields), ask("GET", "/models", *fields)):
            answer = await client.ask(request)
            assert answer.status == 401
            assert answer["WWW-Authenticate"] == "Bearer"
            assert error(answer)["code"] == "invalid_api_key"
    assert replica.untouched
    answer = await client.ask(chat(CHAT, "Authorization: Bearer sesame"))
    assert answer.status == 200
    assert "Authorization" not in replica.requests[0]


async def test_the_service_does_not_ask_again(gateway: Gateway) -> None:
    gateway.auth = ALICE
    replica = await open_endpoint(gateway, auth=True)
    replica.answers = reply()
    client = await gateway.client()
    assert (await client.ask(chat(CHAT, "Authorization: Bearer sesame"))).status == 200
    assert (await client.ask(post(b"{}"))).status == 401


async def test_an_open_door_leaves_the_service_s_own_lock(gateway: Gateway) -> None:
    gateway.auth = ALICE
    replica = await open_endpoint(gateway, auth=True, door=False)
    replica.answers = reply()
    client = await gateway.client()
    assert (await client.ask(ask("GET", "/models"))).status == 200
    answer = await client.ask(chat())
    assert answer.status == 401
    assert error(answer)["code"] == "invalid_api_key"
    assert (await client.ask(chat(CHAT, "Authorization: Bearer sesame"))).status == 200


async def test_a_dstack_server_s_members_get_in_and_others_get_403(
    gateway: Gateway, tmp_path: Path
) -> None:
    directory = tmp_path / "servers"
    directory.mkdir()
    server = Replica("server", directory / "a.sock")
    await server.start()

    def judge(request: Message) -> bytes:
        assert request.start.startswith("POST /api/projects/main/get ")
        member = request["Authorization"] == "Bearer member"
        return reply(b"{}", status="200 OK" if member else "403 Forbidden")

    server.answers = judge
    gateway.auth = DstackAuth(str(directory))
    replica = await open_endpoint(gateway, auth=False)
    replica.answers = reply()
    client = await gateway.client()
    for fields in ((), ("Authorization: Bearer stranger",)):
        answer = await client.ask(chat(CHAT, *fields))
        assert answer.status == 403
        assert error(answer)["message"] == (
            "Unauthenticated or unauthorized to access project main"
        )
    assert (await client.ask(chat(CHAT, "Authorization: Bearer member"))).status == 200
    assert "Authorization" not in replica.requests[0]
    await server.stop()


async def test_an_authority_that_cannot_tell_is_503(gateway: Gateway, tmp_path: Path) -> None:
    gateway.auth = HttpAuth(UnixAddress(str(tmp_path / "nobody.sock")), "/check")
    replica = await open_endpoint(gateway)
    client = await gateway.client()
    answer = await client.ask(chat(CHAT, "Authorization: Bearer x"))
    assert answer.status == 503
    assert error(answer)["code"] == "auth_unavailable"
    assert replica.untouched
