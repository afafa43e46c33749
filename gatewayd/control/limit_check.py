"""Telling which rate limits of services can count for nothing.

Owns: that line, for `check`, the start, a reload and a registration. Does not own: the reasons
(core.reach).
"""

from __future__ import annotations

from collections.abc import Iterable

from gatewayd.core.model import Service
from gatewayd.core.reach import idle_limits
from gatewayd.routers.base import load


def idle_limits_of(services: Iterable[Service]) -> list[str]:
    """Their routers are known ones."""
    lines = []
    for service in services:
        if service.rate_limits:
            router = service.router
            traits = None if router is None else load(router.type).traits(router)
            lines += [f"service {service.key}: {line}" for line in idle_limits(service, traits)]
    return lines
