"""The real sglang-router under our plug-in: targets come and go, and nothing else happens to it."""

from __future__ import annotations

import pytest
from router_promises import Promises

from gatewayd.routers.sglang.options import FLAGS

ROUTER = "sglang"
pytestmark = pytest.mark.asyncio(loop_scope="module")


class TestPromises(Promises):
    flags = FLAGS
    introspection = frozenset({"/health", "/server_info", "/model_info"})
    nobody = 503
