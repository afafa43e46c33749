"""Plug-in for sglang-router, run as a child process; written and tested against 0.3.2.

Owns: `PLUGIN`. Does not own: anything else; `create` imports the rest only when a router is
started, so that `gatewayd check` stays quick.
"""

from __future__ import annotations

from pathlib import Path

from gatewayd.core.model import RouterSpec
from gatewayd.net.ports import PortPool
from gatewayd.routers.base import Plugin, Router
from gatewayd.routers.http_roles import ask_role
from gatewayd.routers.sglang.options import FLAGS
from gatewayd.routers.sglang.traits import traits


def create(name: str, spec: RouterSpec, *, ports: PortPool, log_dir: Path) -> Router:
    from gatewayd.routers.sglang.router import SglangRouter

    return SglangRouter(name, spec, ports=ports, log_dir=log_dir)


PLUGIN = Plugin(check=FLAGS.check, traits=traits, create=create, ask_role=ask_role)
