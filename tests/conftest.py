"""Tests that need a program which is not from the Python package index, or a package that gatewayd
does not depend on, say so with `@pytest.mark.needs("promtool")`: without it they are deselected,
and a line at the end tells. So are those marked `e2e` without an installation of real workers to
run them with."""

from __future__ import annotations

import importlib.util
import os
import shutil

import hypothesis
import pytest

# How long an example takes says more about what else runs on the machine than about the code.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")

PACKAGES = {
    "promtool": "prometheus",
    "nginx": "nginx",
    "curl": "curl",
    "wrk": "wrk",
    "systemd-analyze": "systemd",
}
EXTRAS = ("smg",)  # of gatewayd's own; another package has a program of that name
WORKERS = "GATEWAYD_SGLANG_DIR"  # docs/real-sglang.md
_missing = pytest.StashKey[dict[str, int]]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(program): deselected where it is not installed")
    config.stash[_missing] = {}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"  # nginx is there on Debian
    missing = config.stash[_missing]
    kept, left = [], []
    for item in items:
        absent = [
            program
            for mark in item.iter_markers("needs")
            for program in mark.args
            if not _is_there(program, path)
        ]
        if item.get_closest_marker("e2e") and not os.environ.get(WORKERS):
            absent.append(WORKERS)
        for program in absent:
            missing[program] = missing.get(program, 0) + 1
        (left if absent else kept).append(item)
    if left:
        items[:] = kept
        config.hook.pytest_deselected(items=left)


def _is_there(program: str, path: str) -> bool:
    if program in EXTRAS:
        return importlib.util.find_spec(program) is not None
    return shutil.which(program, path=path) is not None


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for program, count in sorted(config.stash[_missing].items()):
        cure = f"Debian: apt-get install {PACKAGES.get(program, program)}"
        if program in EXTRAS:
            cure = f"pip install --editable '.[{program}]'"
        if program == WORKERS:
            cure = "real workers, see docs/real-sglang.md"
        terminalreporter.write_line(f"not run: {count} that need {program} ({cure})", yellow=True)
