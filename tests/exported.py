"""What /metrics shows when everything has been counted once."""

from __future__ import annotations

import re

from gatewayd.control.metrics import Exposition
from gatewayd.control.sample import RouterSample, Sample, ServiceSample
from gatewayd.core.messages import ServiceTotals


async def exported() -> dict[str, set[str]]:
    """Every metric of ours with its labels, as Prometheus sees it."""
    totals = ServiceTotals(
        codes={200: 1},
        rejections={"auth": 1},
        upstream_errors={("a", "connect"): 1},
        ways={"direct": 1},
        steering={"steered": 1},
    )
    sample = Sample(
        services=[
            ServiceSample("llm", totals, [("a", 1)], {"up": 1}, RouterSample(up=True, restarts=0))
        ],
        workers=1,
        worker_restarts=0,
        connections=0,
        reloads={"success": 1},
        certificates={"a.org": 1.0},
    )
    text = (await Exposition(lambda: sample).render()).decode()
    found: dict[str, set[str]] = {}
    for name, labels in re.findall(r"^(gatewayd_\w+)(?:\{(.*?)\})? ", text, re.MULTILINE):
        found.setdefault(name, set()).update(re.findall(r"(\w+)=", labels))
    return found
