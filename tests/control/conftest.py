from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from plant import Plant


@pytest.fixture
def make_plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plant]:
    log = tmp_path / "frames"
    monkeypatch.setenv("SCRIPTED_LOG", str(log))

    def make(**options: Any) -> Plant:
        return Plant(log, **options)

    return make


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder with a short name: the path of a Unix socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="gw") as folder:
        yield Path(folder)
