"""Services whose replicas are routers: of them inference is served, and nothing else."""

from __future__ import annotations

import pytest
from conversation import get, reply
from harness import Gateway

from gatewayd.core.model import RateLimit

OPEN = ["/generate", "/generate?a=b", "/chat/completions", "/v1/", "/v1/models", "/v1/a/b"]
SHUT = [
    *("/", "/v1", "/health", "/metrics", "/workers", "/flush_cache", "/generate/", "/generate/x"),
    *("/chat/completions/", "/v1x", "/v2/", "/v1/../workers", "/v1/%2e%2e/workers", "//workers"),
]


async def test_inference_is_served(gateway: Gateway) -> None:
    replica = await gateway.serve(router_replica=True)
    replica.answers = reply()
    client = await gateway.client()
    assert [(await client.ask(get(path))).status for path in OPEN] == [200] * len(OPEN)
    assert [request.target for request in replica.requests] == OPEN


async def test_administration_is_not(gateway: Gateway) -> None:
    replica = await gateway.serve(router_replica=True)
    client = await gateway.client()
    for path in SHUT:
        answer = await client.ask(get(path))
        assert answer.status == 403, path
        assert answer["Content-Type"] == "application/json"
    assert replica.untouched
    assert gateway.totals().rejections == {"path": len(SHUT)}


async def test_the_service_may_say_which_paths(gateway: Gateway) -> None:
    replica = await gateway.serve(router_replica=True, allowed_paths=("/health",))
    replica.answers = reply()
    client = await gateway.client()
    assert (await client.ask(get("/health"))).status == 200
    assert (await client.ask(get("/v1/models"))).status == 403


@pytest.mark.parametrize(
    ("prefix", "path", "limited"),
    [
        ("/", "/v1/x", True),
        ("/v", "/v1/x", True),
        ("/v1/", "/v1/x", True),
        ("/gen", "/generate", True),
        ("/chat/completions", "/chat/completions", True),
        ("/v1/chat/", "/v1/chat/completions", False),
        ("/v1/chat/completions", "/v1/chat/completions", False),
    ],
)
async def test_a_registered_limit_covers_whole_paths_of_a_router(
    gateway: Gateway, prefix: str, path: str, limited: bool
) -> None:
    replica = await gateway.serve(
        router_replica=True, rate_limits=(RateLimit(prefix, 0.01, 0),), origin="api"
    )
    replica.answers = reply()
    client = await gateway.client()
    statuses = [(await client.ask(get(path))).status for _ in range(2)]
    assert statuses == [200, 429 if limited else 200]


async def test_the_longest_of_those_limits(gateway: Gateway) -> None:
    limits = (RateLimit("/", 0.01, 0), RateLimit("/v1/", 0.01, 1), RateLimit("/v1/chat/", 9, 9))
    replica = await gateway.serve(router_replica=True, rate_limits=limits, origin="api")
    replica.answers = reply()
    client = await gateway.client()
    statuses = [(await client.ask(get("/v1/chat/x"))).status for _ in range(3)]
    assert statuses == [200, 200, 429]


async def test_a_limit_of_the_file_means_what_it_says(gateway: Gateway) -> None:
    limits = (RateLimit("/v1/chat/", 0.01, 0),)
    replica = await gateway.serve(router_replica=True, rate_limits=limits)
    replica.answers = reply()
    client = await gateway.client()
    statuses = [(await client.ask(get("/v1/chat/x"))).status for _ in range(2)]
    assert statuses == [200, 429]
