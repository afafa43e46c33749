"""Folders with short names: the path of a Unix socket has at most 107 bytes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite(
    *("whole_gateway", "whole_replicas", "whole_routed", "whole_streams", "whole_watch")
)


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gw") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def shared_home() -> Iterator[Path]:
    """For a gateway that several tests use."""
    with tempfile.TemporaryDirectory(prefix="gw") as folder:
        yield Path(folder)
