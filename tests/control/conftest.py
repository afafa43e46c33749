from __future__ import annotations

from collections.abc import Callable
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
