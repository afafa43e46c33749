"""A successor that fails, and the signal that comes while it is cleared away."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path

import pytest
from waiting import until

from gatewayd.control.succession import Holding, Succession
from gatewayd.control.survivors import StateDir
from gatewayd.net.notify import Notifier

FAILS = (sys.executable, "-c", "import sys; sys.exit(2)")


class Site:
    def __init__(self, home: Path) -> None:
        self.state_dir = StateDir(str(home / "state"))
        self.state_dir.acquire()
        self.thawing = asyncio.Event()
        self.may_thaw = asyncio.Event()
        holding = Holding(
            opened=list, freeze=self._nothing, thaw=self._thaw, pids=list, taken=lambda: None,
            drain_timeout=lambda: 1.0,
        )  # fmt: skip
        self.succession = Succession(
            FAILS, dict(os.environ), self.state_dir, Notifier(None), holding
        )

    async def _nothing(self) -> None:
        pass

    async def _thaw(self) -> None:
        self.thawing.set()
        await self.may_thaw.wait()


@pytest.fixture
async def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


async def test_a_signal_while_the_one_that_failed_is_cleared_away_starts_another(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """The file is mended as soon as the log says what is wrong with it."""
    caplog.set_level(logging.INFO)
    site.succession.begin(serving=True)
    await until(site.thawing.is_set)
    assert "status 2; this one goes on" in caplog.text
    site.thawing.clear()
    site.succession.begin(serving=True)
    assert site.succession.under_way
    site.may_thaw.set()
    await until(site.thawing.is_set, "a second one was started, and has failed")
    await until(lambda: not site.succession.under_way)
    assert caplog.text.count("status 2; this one goes on") == 2
    assert site.succession.as_json() == {
        "tries": 2,
        "under_way": False,
        "fault": "exited with status 2",
    }


async def test_a_signal_while_one_is_starting_starts_no_other(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.may_thaw.set()
    site.succession.begin(serving=True)
    site.succession.begin(serving=True)
    assert "a successor is starting already" in caplog.text
    await until(lambda: not site.succession.under_way)
    assert caplog.text.count("this one goes on") == 1
