"""How long nobody needs to look at an exchange: a bound may be noticed a tenth late,
which is two such rests."""

from __future__ import annotations

import pytest

from gatewayd.core.model import Timeouts
from gatewayd.proxy import deadlines as module
from gatewayd.proxy.deadlines import Deadlines


@pytest.mark.parametrize(
    ("timeouts", "body_idle_s", "rest_s"),
    [
        (Timeouts(), 60.0, 2.5),
        (Timeouts(first_byte=None, idle=None), 600.0, 2.5),
        (Timeouts(idle=30.0), 60.0, 1.5),
        (Timeouts(total=20.0), 60.0, 1.0),
        (Timeouts(first_byte=40.0), 60.0, 2.0),
        (Timeouts(), 24.0, 1.2),
        (Timeouts(idle=19.9), 60.0, 0.0),  # in every round
        (Timeouts(first_byte=0.5), 60.0, 0.0),
    ],
)
def test_the_shortest_bound_says_how_long(
    monkeypatch: pytest.MonkeyPatch, timeouts: Timeouts, body_idle_s: float, rest_s: float
) -> None:
    monkeypatch.setattr(module, "_REST_S", (1.0, 2.5))  # the real pace
    deadlines = Deadlines(timeouts, body_idle_s, started_at=100.0, now=100.0)
    assert deadlines.rest_s == pytest.approx(rest_s)
