"""The real sglang-router under our plug-in: targets come and go, and nothing else happens to it."""

from __future__ import annotations

from pathlib import Path

import pytest
from live_router import running
from router_promises import Promises

from gatewayd.routers.sglang.options import FLAGS

ROUTER = "sglang"
pytestmark = pytest.mark.asyncio(loop_scope="module")


class TestPromises(Promises):
    flags = FLAGS
    introspection = frozenset({"/health", "/server_info", "/model_info"})
    nobody = 503


async def test_its_threads_share_one_arena(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a held stream costs it more than the bound of docs/steering.md."""
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    async with running(ROUTER, tmp_path) as router:
        assert b"MALLOC_ARENA_MAX=1" in environment_of(router.pid)


def environment_of(pid: int | None) -> list[bytes]:
    return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
