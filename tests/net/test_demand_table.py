"""Requests counted by several workers in one table, and what remains of a worker that died."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from gatewayd.core.demand import Demand
from gatewayd.net.demand import CAPACITY, DemandTable


@pytest.fixture
def table() -> Iterator[DemandTable]:
    table = DemandTable.create(3)
    yield table
    table.close()


def worker(table: DemandTable, slot: int) -> DemandTable:
    return DemandTable.attach(os.dup(table.fd), slot)


def test_what_workers_count_is_added_up(table: DemandTable) -> None:
    one, two = worker(table, 0), worker(table, 2)
    one.began(5, 1000)
    two.began(5, 1500)
    two.began(6, 7)
    assert table.read(5) == Demand(2, 0, 0, 2500)
    one.ended(5, 1, began_ms=1000, ended_ms=4000)
    assert table.read(5) == Demand(2, 1, 3000, 1500)
    assert table.read(6) == Demand(1, 0, 0, 7)
    assert table.read(CAPACITY - 1) == Demand()
    one.close()
    two.close()


def test_the_row_of_a_dead_worker_is_ended_and_gone_on_with(table: DemandTable) -> None:
    dead, other = worker(table, 1), worker(table, 0)
    dead.began(3, 1000)
    dead.ended(3, 1, began_ms=1000, ended_ms=1200)
    dead.began(3, 2000)
    dead.began(4, 2500)
    other.began(4, 2000)
    dead.close()
    table.end_row(1, 10, 3000)
    assert table.read(3) == Demand(2, 2, 1200, 0)
    assert table.read(4) == Demand(2, 1, 500, 2000)
    successor = worker(table, 1)
    successor.began(3, 5000)
    assert table.read(3) == Demand(3, 2, 1200, 5000)
    successor.close()
    other.close()


def test_control_itself_counts_nothing(table: DemandTable) -> None:
    with pytest.raises(IndexError):
        table.began(0, 1)
    with pytest.raises(ValueError, match="slot 3 is not one of 3"):
        table.end_row(3, 1, 1)
    with pytest.raises(ValueError, match="no row 3"):
        DemandTable.attach(table.fd, 3)


def test_the_table_of_another_process_is_found_while_that_lives(table: DemandTable) -> None:
    one = worker(table, 0)
    one.began(7, 1000)
    holder = subprocess.Popen(
        (sys.executable, "-c", "input()"), stdin=subprocess.PIPE, pass_fds=(table.fd,)
    )
    try:
        assert DemandTable.held_by(holder.pid, table.id + 1) is None
        found = DemandTable.held_by(holder.pid, table.id)
        assert found is not None
        assert found.slots == 3
        assert found.read(7) == Demand(1, 0, 0, 1000)
        one.ended(7, 1, began_ms=1000, ended_ms=1001)
        assert found.read(7) == Demand(1, 1, 1, 0)
        found.close()
    finally:
        holder.communicate(b"\n")
    assert DemandTable.held_by(holder.pid, table.id) is None
    one.close()


def test_a_process_without_a_table_has_none() -> None:
    assert DemandTable.held_by(os.getppid(), 1) is None
