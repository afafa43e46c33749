"""Which service a request is for, and which of its paths are served."""

from __future__ import annotations

import pytest
from conversation import get, post, reply
from harness import Gateway

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
