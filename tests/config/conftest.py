"""A gateway file is a text in the test; what is wrong with it are lines to read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent

import pytest
from gateway_text import Load, Problems

from gatewayd.config.errors import ConfigError
from gatewayd.config.load import load_config
from gatewayd.config.model import Config
from gatewayd.config.rules import CheckCertificate, CheckRouter


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def load() -> Load:
    """Loads a text as `gateway.yaml` of the current directory."""

    def load_text(
        text: str,
        env: Mapping[str, str] | None = None,
        *,
        check_router: CheckRouter | None = None,
        check_certificate: CheckCertificate | None = None,
    ) -> Config:
        Path("gateway.yaml").write_text(dedent(text).removeprefix("\n"), encoding="utf-8")
        return load_config(
            "gateway.yaml",
            env or {},
            check_router=check_router,
            check_certificate=check_certificate,
        )

    return load_text


@pytest.fixture
def problems(load: Load) -> Problems:
    """What the operator is told about a text, without the file's name: `12: path: message`."""

    def lines(
        text: str,
        env: Mapping[str, str] | None = None,
        *,
        check_router: CheckRouter | None = None,
        check_certificate: CheckCertificate | None = None,
    ) -> list[str]:
        with pytest.raises(ConfigError) as info:
            load(text, env, check_router=check_router, check_certificate=check_certificate)
        return [line.removeprefix("gateway.yaml:") for line in str(info.value).split("\n")]

    return lines
