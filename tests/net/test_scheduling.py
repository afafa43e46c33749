"""Who is woken waits for who runs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_SHOW = (
    "import os\nfrom gatewayd.net.scheduling import run_in_turns\n"
    "run_in_turns()\nprint(os.sched_getscheduler(0))"
)


def policy_of(*launcher: str) -> int:
    argv = [*launcher, sys.executable, "-c", _SHOW]
    return int(subprocess.run(argv, capture_output=True, check=True, timeout=20).stdout)


def test_the_default_policy_is_left() -> None:
    assert policy_of() == os.SCHED_BATCH


def test_an_operators_own_choice_stays() -> None:
    assert policy_of("chrt", "--idle", "0") == os.SCHED_IDLE


def test_where_it_is_forbidden_all_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from gatewayd.net import scheduling

    def forbidden(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", forbidden)
    scheduling.run_in_turns()
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
