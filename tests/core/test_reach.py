"""Which rate limits can count for nothing, and whether the reason is told."""

from __future__ import annotations

from typing import Any

import pytest

from gatewayd.core.model import RateLimit, RouterTraits, Service
from gatewayd.core.reach import idle_limits


def told(prefixes: list[str], traits: RouterTraits | None = None, **policy: Any) -> dict[str, str]:
    """Prefixes without effect, and why."""
    limits = tuple(RateLimit(prefix, 1, 0) for prefix in prefixes)
    service = Service("main", "llama", ("llama.test",), rate_limits=limits, **policy)
    lines = [line.split(" has no effect: ") for line in idle_limits(service, traits)]
    return {start.removeprefix("the rate limit of prefix "): why for start, why in lines}


def test_where_everything_is_allowed_every_prefix_counts() -> None:
    assert told(["/", "/v1/", "/v1/chat/", "/a.b/..c", "/100%"]) == {}


@pytest.mark.parametrize("prefix", ["/v1//chat", "/v1/./x", "/v1/../x", "/v1%2Fx", "//", "/a\\b"])
def test_a_prefix_that_no_normal_path_has(prefix: str) -> None:
    assert "decoded" in told([prefix])[prefix]


@pytest.mark.parametrize(
    ("prefix", "idle"),
    [
        ("/", False),
        ("/v1", False),
        ("/v1/chat/", False),
        ("/generate", False),
        ("/generate/", True),
        ("/generat", False),
        ("/v2/", True),
        ("/health", True),
    ],
)
def test_a_prefix_beside_the_allowed_paths(prefix: str, idle: bool) -> None:
    allowed = ("/generate", "/v1/")
    found = told([prefix], allowed_paths=allowed)
    assert found == ({prefix: "only these paths are allowed: /generate, /v1/"} if idle else {})


def test_a_prefix_behind_longer_ones() -> None:
    assert told(["/", "/v1/", "/v1/chat/"], allowed_paths=("/v1/",)).keys() == {"/"}
    assert told(["/", "/v1/"], allowed_paths=("/v1/", "/generate")) == {}
    assert told(["/", "/v1/chat/"], allowed_paths=("/v1/",)) == {}


def test_a_registered_service_of_routers_has_limits_on_whole_paths_only() -> None:
    prefixes = ["/", "/v1/", "/v1/chat/", "/generate"]
    found = told(prefixes, origin="api", router_replica=True)
    assert found.keys() == {"/v1/chat/"}
    assert "/generate, /chat/completions, /v1/" in found["/v1/chat/"]
    assert told(prefixes, origin="file", router_replica=True) == {}
