"""What is served on the admin and the metrics address.

Owns: which groups of calls there are. Does not own: serving them (control.api.server). Importing
this takes half a second, which must not delay the workers' start: control imports it late.
"""

from __future__ import annotations

from gatewayd.control.api.auth_calls import AuthCalls
from gatewayd.control.api.certificate_calls import CERTIFICATE_BODIES, CertificateCalls
from gatewayd.control.api.describe import Describe
from gatewayd.control.api.ops_calls import OpsCalls
from gatewayd.control.api.registry_calls import BODIES, RegistryCalls
from gatewayd.control.api.server import AdminServer
from gatewayd.control.api.stats_calls import StatsCalls
from gatewayd.control.certs import Certificates
from gatewayd.control.demands import Demands
from gatewayd.control.metrics import Exposition
from gatewayd.control.registry import Registry
from gatewayd.control.reload import Reloader
from gatewayd.control.router_check import check_router
from gatewayd.control.sockets import Sockets
from gatewayd.control.state import State
from gatewayd.control.status import Status


async def serve_admin(
    server: AdminServer,
    *,
    sockets: Sockets,
    status: Status,
    state: State,
    registry: Registry,
    reloader: Reloader,
    demands: Demands,
    certificates: Certificates,
) -> None:
    assert sockets.admin is not None
    ops = OpsCalls(status, Exposition(status.sample), reloader)
    await server.serve(
        sockets.admin,
        ops,
        RegistryCalls(registry, state, reloader, check_router),
        StatsCalls(demands, state, reloader),
        CertificateCalls(certificates),
        AuthCalls(state),
        Describe({**BODIES, **CERTIFICATE_BODIES}),
    )
    if sockets.metrics is not None:
        await server.serve_metrics(sockets.metrics, ops)
