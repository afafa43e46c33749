"""Lines of the event log, for eyes and for machines."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator

import pytest

from gatewayd.core.model import Log
from gatewayd.net import eventlog


@pytest.fixture(autouse=True)
def root() -> Iterator[None]:
    """Logging as it was, afterwards."""
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)


def test_text_is_one_line_an_event(capsys: pytest.CaptureFixture[str]) -> None:
    eventlog.configure(Log(level="warning"))
    log = logging.getLogger("gatewayd.test")
    log.info("not shown")
    log.warning("two\nlines of %s", "a router")
    out, err = capsys.readouterr()
    assert out == ""
    time, _, rest = err.partition(" ")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", time)
    assert rest == "WARNING two | lines of a router\n"


def test_json_has_the_traceback_in_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    eventlog.configure(Log(format="json"))
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("gatewayd.test").exception("it failed")
    (line,) = capsys.readouterr().err.splitlines()
    entry = json.loads(line)
    assert (entry["level"], entry["logger"]) == ("error", "gatewayd.test")
    assert entry["message"].startswith("it failed | Traceback")
    assert entry["message"].endswith("ValueError: broken")


def test_readiness_is_told_at_every_level(capsys: pytest.CaptureFixture[str]) -> None:
    eventlog.configure(Log(level="error"))
    eventlog.announce("ready: http 127.0.0.1:8080")
    assert capsys.readouterr().err.endswith(" INFO ready: http 127.0.0.1:8080\n")
