"""The real smg under our plug-in: the family's promises, and what is its own."""

from __future__ import annotations

import pytest
from router_promises import Promises

from gatewayd.routers.smg.options import FLAGS

ROUTER = "smg"
pytestmark = pytest.mark.asyncio(loop_scope="module")


class TestPromises(Promises):
    flags = FLAGS
    introspection = frozenset(
        {
            *{"/health", "/server_info", "/model_info", "/v1/models", "/version"},
            *{"/loads", "/v1/loads", "/get_load", "/metrics"},  # every 10 s
        }
    )
    nobody = 404
