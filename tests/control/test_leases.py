"""Load-table columns and bridge ports: who has which, and when it is given away again."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
from free_ports import free_range

from gatewayd.control.leases import (
    LINGER_S,
    PORT_QUARANTINE_S,
    IndexLeases,
    LeaseError,
    PortLeases,
)
from gatewayd.net.loads import LoadTable

A, B, C = ("main/a", "r1"), ("main/a", "r2"), ("main/b", "r1")


@pytest.fixture
def loads() -> Iterator[LoadTable]:
    table = LoadTable.create(2)
    yield table
    table.close()


def writer(loads: LoadTable) -> LoadTable:
    return LoadTable.attach(os.dup(loads.fd), loads.slots, 0)


def test_an_endpoint_keeps_its_index(loads: LoadTable) -> None:
    indexes = IndexLeases(loads)
    assert indexes.lease(A) == indexes.lease(A) != indexes.lease(B)


def test_an_index_is_reused_only_after_its_requests_ended(loads: LoadTable) -> None:
    indexes, worker = IndexLeases(loads), writer(loads)
    index = indexes.lease(A)
    worker.add(index)
    indexes.keep(set())
    assert indexes.reap(0.0) == []
    assert indexes.reap(1000.0) == []
    assert indexes.load(A) == 1
    worker.done(index)
    assert indexes.reap(2000.0) == []  # idle from now on
    assert indexes.reap(2000.0 + LINGER_S - 0.1) == []
    assert indexes.reap(2000.0 + LINGER_S) == [A]
    assert indexes.lease(B) == index
    worker.close()


def test_an_endpoint_that_comes_back_has_its_index_again(loads: LoadTable) -> None:
    indexes = IndexLeases(loads)
    index = indexes.lease(A)
    indexes.keep(set())
    indexes.reap(0.0)
    assert indexes.lease(A) == index
    indexes.keep({A})
    assert indexes.reap(1000.0) == []
    assert not indexes.lingering


@pytest.fixture
def ports() -> Iterator[PortLeases]:
    four = free_range(4)
    leases = PortLeases(four[0], four[-1])
    yield leases
    leases.close()


def idle(_: object) -> int:
    return 0


def release(ports: PortLeases, wanted: set[tuple[str, str]], now: float) -> None:
    ports.keep(wanted)
    ports.reap(idle, now)
    ports.reap(idle, now + LINGER_S)


def test_a_replica_keeps_its_port_and_the_port_listens(ports: PortLeases) -> None:
    lease = ports.lease(A, 0.0)
    assert ports.lease(A, 1.0) is lease
    assert ports.lease(B, 1.0).port != lease.port
    with socket.create_connection(("127.0.0.1", lease.port), timeout=5):
        pass


def test_a_taken_port_is_skipped(ports: PortLeases) -> None:
    first = ports.lease(A, 0.0).port
    with socket.create_server(("127.0.0.1", first + 1)):
        assert ports.lease(B, 0.0).port == first + 2


def test_a_released_port_goes_to_nobody_else_for_ten_minutes(ports: PortLeases) -> None:
    port = ports.lease(A, 0.0).port
    release(ports, set(), 0.0)
    assert ports.get(A) is None
    others = [ports.lease(("main/o", str(n)), 10.0).port for n in range(3)]
    assert port not in others
    with pytest.raises(LeaseError, match=r"ports\.bridge"):
        ports.lease(("main/o", "last"), 10.0)
    assert ports.lease(("main/o", "last"), LINGER_S + PORT_QUARANTINE_S + 1).port == port


def test_a_replica_that_comes_back_gets_its_own_port(ports: PortLeases) -> None:
    port = ports.lease(A, 0.0).port
    ports.lease(B, 0.0)
    release(ports, {B}, 0.0)
    assert ports.lease(A, 20.0).port == port


def test_a_port_stays_open_while_a_request_runs_on_it(ports: PortLeases) -> None:
    lease = ports.lease(A, 0.0)
    ports.keep(set())
    assert ports.reap(lambda key: 1, 0.0) == []
    assert ports.reap(lambda key: 1, 1000.0) == []
    with socket.create_connection(("127.0.0.1", lease.port), timeout=5):
        pass
    assert ports.reap(idle, 1001.0) == []
    assert ports.reap(idle, 1001.0 + LINGER_S) == [A]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", lease.port), timeout=5)
