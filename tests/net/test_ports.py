"""Loopback ports for children: only free ones, in rotation, never one twice."""

from __future__ import annotations

import socket

import pytest

from gatewayd.net.ports import PortPool, free


def listening() -> socket.socket:
    sock = socket.create_server(("127.0.0.1", 0))
    sock.settimeout(1)
    return sock


def adjacent() -> int:
    """The first of six neighbouring ports that are free now."""
    for first in range(15000, 16000, 6):
        if all(free(port) for port in range(first, first + 6)):
            return first
    raise AssertionError("no six free ports")


def test_a_taken_port_is_skipped() -> None:
    with listening() as taken:
        port = taken.getsockname()[1]
        assert not free(port)
        with pytest.raises(OSError, match=f"no free port in {port}-{port}"):
            PortPool(port, port).take()


def test_the_port_above_must_be_free_too() -> None:
    with listening() as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="no free port"):
            PortPool(port - 1, port - 1, also=1).take()


def test_gateways_that_choose_at_one_moment_choose_different_ports() -> None:
    """Nobody listens yet on what they chose; each of their children listens on two ports."""
    first = adjacent()
    one, other = PortPool(first, first + 3, also=2), PortPool(first, first + 3, also=2)
    assert one.take() == first
    assert other.take() == first + 1
    with pytest.raises(OSError, match="no free port"):
        other.take()  # those above are the second ports of these
    one.release(first)
    assert other.take() == first + 2
    other.release(first + 1)
    other.release(first + 2)


def test_ports_rotate_and_come_back_when_released() -> None:
    first = adjacent()
    pool = PortPool(first, first + 2)
    assert [pool.take(), pool.take(), pool.take()] == [first, first + 1, first + 2]
    with pytest.raises(OSError, match="no free port"):
        pool.take()
    pool.release(first + 1)
    assert pool.take() == first + 1
    pool.release(first)
    pool.release(first + 2)
    # Not the one used last, nor the lowest: what made a start fail may sit on either.
    assert pool.take() == first + 2
    pool.release(first + 1)
    pool.release(first + 2)


def test_no_port_beyond_the_last() -> None:
    assert not free(65536)
    assert not free(0)
    with pytest.raises(OSError, match="no free port"):
        PortPool(60000, 60010, also=10000).take()


def test_ports_of_those_who_come_later_are_the_last_resort() -> None:
    first = adjacent()
    pool = PortPool(first, first + 2, also=3, avoid=lambda: {first, first + 4})
    taken = [pool.take(), pool.take(), pool.take()]
    for port in taken:
        pool.release(port)
    assert taken == [first + 2, first, first + 1]
