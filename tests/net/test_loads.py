"""The shared table of requests in flight: one writer per cell, sums over all of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatewayd.net.loads import CAPACITY, LoadTable


@pytest.fixture
def table() -> Iterator[LoadTable]:
    table = LoadTable.create(3)
    yield table
    table.close()


@pytest.fixture
def rows(table: LoadTable) -> Iterator[list[LoadTable]]:
    rows = [LoadTable.attach(os.dup(table.fd), 3, slot) for slot in range(3)]
    yield rows
    for row in rows:
        row.close()


def test_a_load_is_the_sum_over_slots(table: LoadTable, rows: list[LoadTable]) -> None:
    rows[0].add(7)
    rows[1].add(7)
    rows[1].add(7)
    rows[2].add(8)
    assert table.load(7) == rows[0].load(7) == 3
    assert [row.own(7) for row in rows] == [1, 2, 0]
    assert table.loads((6, 7, 8)) == [0, 3, 1]


def test_done_never_goes_below_zero(table: LoadTable, rows: list[LoadTable]) -> None:
    rows[0].add(1)
    rows[1].done(1)
    rows[0].done(1)
    rows[0].done(1)
    assert table.load(1) == 0


def test_clearing_a_row_leaves_the_others(table: LoadTable, rows: list[LoadTable]) -> None:
    for index in (0, 5, CAPACITY - 1):
        for row in rows:
            row.add(index)
    table.clear_row(1)
    assert table.loads((0, 5, CAPACITY - 1)) == [2, 2, 2]
    assert rows[1].own(5) == 0
    assert rows[2].own(5) == 1


def test_the_table_without_a_slot_cannot_count(table: LoadTable) -> None:
    with pytest.raises(IndexError):
        table.add(0)
    with pytest.raises(IndexError):
        table.done(0)
    assert table.load(0) == 0


@pytest.mark.parametrize("slot", [-1, 3])
def test_a_slot_that_does_not_exist_is_refused(table: LoadTable, slot: int) -> None:
    with pytest.raises(ValueError, match="slot"):
        LoadTable.attach(table.fd, 3, slot)
    with pytest.raises(ValueError, match="slot"):
        table.clear_row(slot)


def test_a_table_of_another_size_is_refused(table: LoadTable) -> None:
    with pytest.raises(ValueError, match="expected"):
        LoadTable.attach(table.fd, 4, 0)


def test_an_index_beyond_the_capacity_is_refused(rows: list[LoadTable]) -> None:
    with pytest.raises(IndexError):
        rows[0].add(CAPACITY)


def test_the_table_cannot_be_shrunk_under_its_readers(table: LoadTable) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(table.fd, 0)


def test_what_a_killed_process_counted_stays_until_its_row_is_cleared(table: LoadTable) -> None:
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        own = LoadTable.attach(table.fd, 3, 2)
        for _ in range(1000):
            own.add(4)
        own.done(4)
        os.write(tell, b".")
        signal.pause()
        os._exit(0)
    assert os.read(told, 1) == b"."
    assert table.load(4) == 999
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert table.load(4) == 999
    table.clear_row(2)
    assert table.load(4) == 0
    os.close(told)
    os.close(tell)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 2), st.sampled_from((0, 1, CAPACITY - 1)))))
def test_counts_are_those_of_a_plain_dictionary(
    steps: list[tuple[bool, int, int]],
) -> None:
    table = LoadTable.create(3)
    rows = [LoadTable.attach(os.dup(table.fd), 3, slot) for slot in range(3)]
    plain: dict[tuple[int, int], int] = {}
    for up, slot, index in steps:
        if up:
            rows[slot].add(index)
            plain[slot, index] = plain.get((slot, index), 0) + 1
        else:
            rows[slot].done(index)
            plain[slot, index] = max(0, plain.get((slot, index), 0) - 1)
    for index in (0, 1, CAPACITY - 1):
        assert table.load(index) == sum(n for (_, i), n in plain.items() if i == index)
    for opened in (*rows, table):
        opened.close()
