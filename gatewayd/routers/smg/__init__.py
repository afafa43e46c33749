"""Plug-in for smg, the successor of another router here; written and tested against 1.13.0.

Owns: `PLUGIN`. Does not own: anything else; `create` imports the rest only when a router is
started, so that `gatewayd check` stays quick. What it can and cannot do: docs/routers/smg.md.
"""

from __future__ import annotations

from pathlib import Path

from gatewayd.core.model import RouterSpec
from gatewayd.net.ports import PortPool
from gatewayd.routers.base import Plugin, Router
from gatewayd.routers.http_roles import ask_role
from gatewayd.routers.smg.options import FLAGS
from gatewayd.routers.smg.traits import traits


def create(name: str, spec: RouterSpec, *, ports: PortPool, log_dir: Path) -> Router:
    from gatewayd.routers.smg.router import SmgRouter

    return SmgRouter(name, spec, ports=ports, log_dir=log_dir)


PLUGIN = Plugin(check=FLAGS.check, traits=traits, create=create, ask_role=ask_role)
