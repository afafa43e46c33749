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
    faults = plugin.check(spec)
    if spec.pd_disaggregation and plugin.ask_role is None:
        faults.append(f"pd_disaggregation: the router `{spec.type}` does not know it")
    if spec.pd_disaggregation and spec.mode == "steer":
        faults.append(
            "mode: with `pd_disaggregation` each request goes to two replicas, and only the router "
            "knows what to tell them: write `auto` or `through`"
        )
    return faults
