"""Asking a router plug-in what is wrong with a spec, for the file and for the registry API.

Owns: that question. Does not own: its answers (the plug-in's `check`).
"""

from __future__ import annotations

from gatewayd.core.model import RouterSpec
from gatewayd.routers.base import UnknownRouterError, load


def check_router(spec: RouterSpec) -> list[str]:
    """Every fault, in words; may take as long as running the router's program."""
    try:
        plugin = load(spec.type)
    except UnknownRouterError as error:
        return [str(error)]
    return plugin.check(spec)
