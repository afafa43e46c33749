"""The sglang-router as a supervised child.

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
from gatewayd.routers.sglang.options import FLAGS
from gatewayd.routers.sglang.traits import traits


class SglangRouter(HttpRouter):
    package = FLAGS.package
    grace_s = FLAGS.grace_s
    # It allocates by glibc's malloc. A copy of a body leaves a hole where it was, and a thread
    # fills none of another arena's: with one for all, 27 KiB a held stream instead of 29 where two
    # threads run, and more is won where more do (docs/steering.md).
    environment: ClassVar[Mapping[str, str]] = {"MALLOC_ARENA_MAX": "1"}
    # Without this label it fetches the model's tokenizer from a model hub, and holds one of its
    # ten jobs for 30 s when there is no way there.
    registration: ClassVar[Mapping[str, Any]] = {"labels": {"tokenizer_path": "/dev/null"}}
    # What it says about things that are as they should be: our labels, our probes of its
    # identity, targets behind a bridge that needs no key, dummies. Replicas' answers are in our
    # access log.
    chatter = re.compile(
        "Failed to load tokenizer for model .* from /dev/null|without API key while router has"
        "|http://127\\.0\\.0\\.1:0\\b|No loads fetched from workers"
        "|request failed with (client|server) error"
    )

    def argv(self, port: int, log_dir: Path) -> list[str]:
        return FLAGS.argv(self._spec, port, log_dir)

    @property
    def traits(self) -> RouterTraits:
        return traits(self._spec, self._key)
