"""smg as a supervised child.

Owns: what is particular to its process and its registrations. Does not own: the rest of both
(http_router), its flags (options).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from gatewayd.core.model import RouterTraits
from gatewayd.routers.http_router import HttpRouter
from gatewayd.routers.smg.options import FLAGS
from gatewayd.routers.smg.traits import traits


class SmgRouter(HttpRouter):
    package = FLAGS.package
    grace_s = FLAGS.grace_s
    # A removed target would stay in the list for 5 s, taking nothing, and could not come back.
    registration: ClassVar[Mapping[str, Any]] = {"health": {"drain_settle_secs": 0}}
    # What it says about things that are as they should be: targets behind a bridge that needs no
    # key, our probes of its identity, dummies. Replicas' answers are in our access log.
    chatter = re.compile(
        "without API key while router has|http://127\\.0\\.0\\.1:0\\b|No loads fetched from workers"
        "|request failed with (client|server) error|No worker serves model"
    )

    def argv(self, port: int, log_dir: Path) -> list[str]:
        return FLAGS.argv(self._spec, port, log_dir)

    @property
    def traits(self) -> RouterTraits:
        return traits(self._spec, self._key)
