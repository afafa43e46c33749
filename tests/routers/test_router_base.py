"""Plug-ins are found by name, and a wrong name says which there are."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gatewayd.routers.base import Plugin, UnknownRouterError, available, load


def test_a_plugin_is_found_by_name() -> None:
    assert isinstance(load("sglang"), Plugin)
    assert "sglang" in available()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sglng", r"no router of type 'sglng', did you mean 'sglang'\? Available: sglang"),
        ("nginx", r"no router of type 'nginx'\. Available: sglang"),
        ("base", r"no router of type 'base'"),
        ("sglang.options", r"no router of type"),
        ("../x", r"no router of type"),
    ],
)
def test_an_unknown_type_names_those_there_are(name: str, message: str) -> None:
    with pytest.raises(UnknownRouterError, match=message):
        load(name)


def test_checking_imports_no_web_framework() -> None:
    """`gatewayd check` stays quick: the plug-in's client is imported only to start a router."""
    code = (
        "import sys; from gatewayd.routers.base import load;"
        "from gatewayd.core.model import RouterSpec;"
        "assert load('sglang').check(RouterSpec('sglang', policy='random')) == [];"
        "print(sorted({'aiohttp', 'fastapi', 'uvicorn'} & sys.modules.keys()))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True
    )
    assert run.stdout.strip() == "[]"
