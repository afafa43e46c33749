"""Sockets that are bound before the processes that accept on them."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from gatewayd.core.model import TcpAddress, UnixAddress
from gatewayd.net.listeners import (
    Listener,
    ListenError,
    adopt_passed,
    adopt_slots,
    bind_one,
    bind_slots,
    systemd_sockets,
)

LOOPBACK = TcpAddress("127.0.0.1", 0)


@pytest.fixture
def listener() -> Iterator[Listener]:
    bound = bind_slots("127.0.0.1:0", LOOPBACK, 3)
    yield bound
    bound.close()


def tcp(listener: Listener) -> TcpAddress:
    assert isinstance(listener.address, TcpAddress)
    return listener.address


def test_slots_share_one_port_and_all_listen(listener: Listener) -> None:
    assert {sock.getsockname() for sock in listener.sockets} == {("127.0.0.1", tcp(listener).port)}
    clients = [socket.create_connection(("127.0.0.1", tcp(listener).port)) for _ in range(60)]
    accepted = dict.fromkeys(listener.sockets, 0)
    for sock in listener.sockets:
        while True:
            try:
                connection, _ = sock.accept()
            except BlockingIOError:
                break
            connection.close()
            accepted[sock] += 1
    assert sum(accepted.values()) == 60
    assert min(accepted.values()) > 0
    for client in clients:
        client.close()


def test_a_slot_keeps_its_socket_for_every_successor(listener: Listener) -> None:
    assert listener.for_slot(1, 3) == listener.for_slot(1, 3) != listener.for_slot(2, 3)


def test_a_port_of_somebody_else_is_refused_even_with_the_same_options(listener: Listener) -> None:
    taken = TcpAddress("127.0.0.1", tcp(listener).port)
    with pytest.raises(ListenError, match=rf"127\.0\.0\.1:{taken.port}: address already in use"):
        bind_slots("x", taken, 2)
    with pytest.raises(ListenError, match="already in use"):
        bind_one(taken)


def test_a_takeover_binds_beside_those_who_leave(listener: Listener) -> None:
    beside = bind_slots("x", TcpAddress("127.0.0.1", tcp(listener).port), 2, takeover=True)
    assert beside.address == listener.address
    beside.close()


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ListenError, match="this machine has no such address"):
        bind_slots("x", TcpAddress("192.0.2.1", 8080), 1)


def test_a_name_that_does_not_resolve_is_refused() -> None:
    with pytest.raises(ListenError, match=r"nowhere\.invalid:80"):
        bind_slots("x", TcpAddress("nowhere.invalid", 80), 1)


def test_a_unix_listener_is_shared_and_open_to_all(tmp_path: Path) -> None:
    path = tmp_path / "public.sock"
    listener = bind_slots("unix:x", UnixAddress(str(path)), 3)
    assert listener.for_slot(0, 3) == listener.for_slot(2, 3)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    listener.close()


def test_one_socket_is_for_its_group(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    umask = os.umask(0o022)
    bind_one(UnixAddress(str(path))).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert os.umask(umask) == 0o022


def test_a_stale_socket_file_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    address = UnixAddress(str(tmp_path / "a.sock"))
    bind_one(address).close()  # its file stays, nobody answers
    with bind_one(address):
        with pytest.raises(ListenError, match=r"a\.sock: another process is listening there"):
            bind_one(address)
        bind_one(address, takeover=True).close()


def test_a_file_in_the_way_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_text("precious")
    with pytest.raises(ListenError, match="not a socket is in the way"):
        bind_one(UnixAddress(str(path)))
    assert path.read_text() == "precious"


def test_a_missing_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(ListenError, match="No such file or directory"):
        bind_one(UnixAddress(str(tmp_path / "no" / "a.sock")))


def test_systemd_sockets_are_found_by_name() -> None:
    with socket.create_server(("127.0.0.1", 0)) as given:
        old = os.dup(3) if os.path.exists("/proc/self/fd/3") else None
        os.dup2(given.fileno(), 3)
        environ = {"LISTEN_PID": "77", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "web"}
        assert systemd_sockets(environ, pid=78) == {}
        passed = systemd_sockets(environ, pid=77)
        (listener,) = adopt_passed("web", passed)
        assert listener.address == TcpAddress(*given.getsockname())
        assert not os.get_inheritable(3)
        with pytest.raises(ListenError, match=r"fd:api: .*passed: web"):
            adopt_passed("api", passed)
        listener.close()
        if old is not None:
            os.dup2(old, 3)
            os.close(old)


@pytest.mark.parametrize("slots", [1, 2, 3, 5])
def test_a_predecessors_sockets_are_all_accepted_on(listener: Listener, slots: int) -> None:
    adopted = adopt_slots("127.0.0.1:0", listener.sockets, slots)
    accepted = [sock for slot in range(slots) for sock in adopted.for_slot(slot, slots)]
    assert set(accepted) == set(adopted.sockets) >= set(listener.sockets)
    assert len(accepted) == max(slots, 3)
    assert {sock.getsockname() for sock in accepted} == {("127.0.0.1", tcp(listener).port)}
    adopted.close()


def test_a_socket_of_systemd_stays_the_only_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as given:
        adopted = adopt_slots("fd:web", (given,), 3)
        assert [adopted.for_slot(slot, 3) for slot in range(3)] == [(given,)] * 3
