"""What a service's path rules come to: its allow-list, its limits, and which of these count never.

Owns: defaults of services with a router, which limits reach no request. Does not own: what a
normalised path is (core.routing), the choice among limits (core.ratelimit).
"""

from __future__ import annotations

import re
from typing import Final

from gatewayd.core.model import RateLimit, RouterTraits, Service
from gatewayd.core.ratelimit import compile_limits, longest_prefix

# Of a service whose replicas are routers: what is not administration (exact, and below a prefix).
ROUTER_PATHS: Final = ("/generate", "/chat/completions", "/v1/")
# In no path that core.routing.normal_path gives.
_NEVER: Final = re.compile(r"//|/\.\.?/|\\|\x00|%[0-9A-Fa-f]{2}")


def allowed_paths(service: Service, traits: RouterTraits | None) -> tuple[str, ...] | None:
    """Its own allow-list, else the one that comes with its router; None allows all."""
    if service.allowed_paths is not None:
        return service.allowed_paths
    if service.router_replica:
        return ROUTER_PATHS
    if service.router is not None and traits is not None:
        return traits.allowed_paths
    return None


def counted_limits(service: Service) -> tuple[RateLimit, ...]:
    """Those who register services count on others having no effect where there is a router; an
    operator's file means what it says."""
    if not _only_whole_paths(service):
        return service.rate_limits
    return tuple(limit for limit in service.rate_limits if _covers_a_router_path(limit.prefix))


def idle_limits(service: Service, traits: RouterTraits | None) -> list[str]:
    """A line for each limit that no request can meet, with the reason."""
    counted = counted_limits(service)
    rules = compile_limits(service.key, counted)
    allowed = allowed_paths(service, traits)
    lines = []
    for limit in service.rate_limits:
        prefix = limit.prefix
        if limit not in counted:
            routers = ", ".join(ROUTER_PATHS)
            why = f"of a registered service with a router only prefixes of {routers} are counted"
        elif _NEVER.search(prefix):
            why = "paths are compared when they are decoded, with // and dot segments resolved"
        elif allowed is None:
            continue
        elif not any(_overlap(prefix, path) for path in allowed):
            why = f"only these paths are allowed: {', '.join(allowed)}"
        elif prefix not in {
            rule.prefix for path in _met(prefix, allowed) if (rule := longest_prefix(rules, path))
        }:
            why = "longer prefixes cover every allowed path that begins so"
        else:
            continue
        lines.append(f"the rate limit of prefix {prefix} has no effect: {why}")
    return lines


def _only_whole_paths(service: Service) -> bool:
    return service.origin == "api" and (service.router_replica or service.router is not None)


def _covers_a_router_path(prefix: str) -> bool:
    """Whether a limit covers a path of a router as a whole."""
    return any(path.startswith(prefix) for path in ROUTER_PATHS)


def _overlap(prefix: str, path: str) -> bool:
    return path.startswith(prefix) or (path.endswith("/") and prefix.startswith(path))


def _met(prefix: str, allowed: tuple[str, ...]) -> list[str]:
    """For each allowed path that overlaps, the shortest that begins with `prefix`: whatever rule
    covers it covers the others too, or is for part of them."""
    return [max(prefix, path, key=len) for path in allowed if _overlap(prefix, path)]
