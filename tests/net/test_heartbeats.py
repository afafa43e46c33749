"""Promises of each process, one cell each."""

from __future__ import annotations

import os

import pytest

from gatewayd.net.heartbeats import Heartbeats


def test_what_a_process_promises_control_reads() -> None:
    table = Heartbeats.create(3)
    rows = [Heartbeats.attach(os.dup(table.fd), slot) for slot in range(3)]
    assert [table.promised(slot) for slot in range(3)] == [0.0, 0.0, 0.0]
    rows[1].promise(1234.5678)
    rows[2].promise(40_000_000.25)  # 463 days after the machine has started
    assert [table.promised(slot) for slot in range(3)] == [0.0, 1234.567, 40_000_000.25]
    table.clear(1)
    assert [table.promised(slot) for slot in range(3)] == [0.0, 0.0, 40_000_000.25]
    for one in (*rows, table):
        one.close()


def test_control_itself_promises_nothing_and_nobody_for_a_slot_that_is_not_there() -> None:
    table = Heartbeats.create(2)
    with pytest.raises(IndexError):
        table.promise(1.0)
    with pytest.raises(ValueError, match="slot 2 is not one of 2"):
        Heartbeats.attach(table.fd, 2)
    table.close()
