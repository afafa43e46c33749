"""The flags and policies of the installed sglang-router that differ from its family's.

Owns: `FLAGS`. Does not own: checking them (http_flags), running it (router).
"""

from __future__ import annotations

import importlib
import re
from typing import Final

from gatewayd.routers.http_flags import RANGES, REFUSED, Flags

_SERVER: Final = "sglang_router.sglang_router_rs"


def _native_policies() -> list[str]:
    """Its server has some that its command line does not offer."""
    members = dir(importlib.import_module(_SERVER).PolicyType)
    names = [member for member in members if not member.startswith("_")]
    return [re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower() for name in names]


FLAGS: Final = Flags(
    distribution="sglang-router",
    package="sglang_router",
    grace_s=5,
    defaults={"worker-startup-timeout-secs": "5"},
    refused={
        **REFUSED,
        "mini-lb": "it is a debugging aid without the router's policies",
        "backend": "only SGLang's own protocol is spoken to replicas",
    },
    ranges=RANGES,
    unfit_policies={
        "prefix_hash": "it needs tokens, and over HTTP the router has none: every request "
        "would be 503",
    },
    more_policies=_native_policies,
)
