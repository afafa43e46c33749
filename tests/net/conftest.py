from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Links are read by the loop of production; both notice the end of a peer in their own way.
    Of the two only that of production says when a Unix socket's backlog is full."""
    if item.path.name == "test_upstream_pool.py":
        return {"uvloop": uvloop.new_event_loop}
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    if item.path.name in ("test_link.py", "test_mux.py", "test_mux_pool.py", "test_splice.py"):
        loops["uvloop"] = uvloop.new_event_loop
    return loops


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"
