"""Counters never go back, whoever died, and services that went away take their counts along."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from gatewayd.control.slot import SlotProcess
from gatewayd.control.telemetry import Telemetry
from gatewayd.core.messages import Report, ServiceTotals


@pytest.fixture
def process() -> Iterator[SlotProcess]:
    popen = subprocess.Popen((sys.executable, "-c", ""))
    yield SlotProcess("worker", 0, 1, popen)
    popen.wait()


def other(process: SlotProcess, slot: int) -> SlotProcess:
    return SlotProcess("worker", slot, 1, process.popen)


def report(**counts: int) -> Report:
    totals = {
        f"main/{name}": ServiceTotals(
            codes={200: count}, duration_buckets=[count, 0], duration_sum=count / 2
        )
        for name, count in counts.items()
    }
    return Report(0, 1, totals, 0)


def test_the_newest_report_of_each_process_counts(process: SlotProcess) -> None:
    telemetry = Telemetry()
    telemetry.keep({"main/a"})
    telemetry.report(process, report(a=3))
    telemetry.report(process, report(a=5))
    telemetry.report(other(process, 1), report(a=2))
    totals = telemetry.totals()["main/a"]
    assert totals.codes == {200: 7}
    assert totals.duration_buckets == [7, 0]
    assert totals.duration_sum == 3.5


def test_a_report_without_a_service_leaves_its_counts(process: SlotProcess) -> None:
    telemetry = Telemetry()
    telemetry.keep({"main/a", "main/b"})
    telemetry.report(process, report(a=3, b=1))
    telemetry.report(process, report(b=2))
    assert telemetry.totals()["main/a"].codes == {200: 3}
    assert telemetry.totals()["main/b"].codes == {200: 2}


def test_a_respawn_does_not_count_backwards(process: SlotProcess) -> None:
    telemetry = Telemetry()
    telemetry.keep({"main/a"})
    telemetry.report(process, report(a=40))
    telemetry.ended(process)
    assert telemetry.totals()["main/a"].codes == {200: 40}
    telemetry.report(other(process, 0), report(a=1))
    assert telemetry.totals()["main/a"].codes == {200: 41}


def test_a_removed_service_is_forgotten_for_good(process: SlotProcess) -> None:
    telemetry = Telemetry()
    telemetry.keep({"main/a"})
    telemetry.report(process, report(a=40))
    telemetry.keep(())
    telemetry.report(process, report(a=41))  # a stream that went on to its end
    telemetry.ended(process)
    assert set(telemetry.totals()) == {""}
    telemetry.keep({"main/a"})
    assert telemetry.totals()["main/a"].codes == {}


def test_what_was_given_out_does_not_change(process: SlotProcess) -> None:
    telemetry = Telemetry()
    telemetry.keep({"main/a"})
    telemetry.report(process, report(a=1))
    before = telemetry.totals()
    telemetry.report(process, report(a=2))
    assert before["main/a"].codes == {200: 1}
