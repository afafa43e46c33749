"""Roles that replicas tell: asked for until they do, and never believed beyond their death."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest
from plant import service
from waiting import until

from gatewayd.control import roles as module
from gatewayd.control.roles import Roles
from gatewayd.control.state import State
from gatewayd.core.model import Address, Replica, ReplicaRole, RouterSpec, TcpAddress
from gatewayd.routers.base import RouterError

KEY = ("main/llama", "a")
APART = RouterSpec("any", pd_disaggregation=True)
PREFILL, DECODE = ReplicaRole("prefill", 8998), ReplicaRole("decode")


class Asked:
    """Answers with `says`, or fails with it."""

    def __init__(self) -> None:
        self.says: ReplicaRole | str | Exception = "not yet"
        self.at: list[Address] = []
        self.changes = 0
        self.state = State()
        self.put()
        self.roles = Roles(self.state, lambda type_: self.ask, self.changed)

    def put(self, *, port: int = 1, router: RouterSpec | None = APART) -> None:
        replicas = (Replica("a", TcpAddress("10.0.0.1", port)),)
        self.state.services = {KEY[0]: replace(service("llama"), router=router, replicas=replicas)}

    async def ask(self, address: Address) -> ReplicaRole:
        self.at.append(address)
        if isinstance(self.says, ReplicaRole):
            return self.says
        raise self.says if isinstance(self.says, Exception) else RouterError(self.says)

    def changed(self) -> None:
        self.changes += 1

    def is_(self, role: ReplicaRole | None) -> Callable[[], bool]:
        return lambda: self.state.roles.get(KEY) == role


@pytest.fixture
async def asked(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Asked]:
    monkeypatch.setattr(module, "ASK_FIRST_S", 0.005)
    monkeypatch.setattr(module, "ASK_AGAIN_S", 0.02)
    asked = Asked()
    yield asked
    await asked.roles.aclose()


async def test_it_is_asked_until_it_tells_and_then_again(asked: Asked) -> None:
    asked.roles.follow()
    await until(lambda: len(asked.at) > 2)
    assert (asked.state.roles, asked.roles.fault(*KEY)) == ({}, "not yet")
    asked.says = PREFILL
    await until(asked.is_(PREFILL))
    assert (asked.changes, asked.roles.fault(*KEY)) == (1, None)
    asked.roles.follow()
    asked.says = DECODE
    await until(asked.is_(DECODE))
    assert asked.changes == 2


async def test_one_that_told_and_is_busy_keeps_its_role(asked: Asked) -> None:
    asked.says = PREFILL
    asked.roles.follow()
    await until(asked.is_(PREFILL))
    asked.says = "busy"
    seen = len(asked.at)
    await until(lambda: len(asked.at) > seen + 2)
    assert asked.state.roles == {KEY: PREFILL}
    assert asked.changes == 1


async def test_one_that_refuses_connections_has_none_until_it_is_back(asked: Asked) -> None:
    asked.says = PREFILL
    asked.roles.follow()
    await until(asked.is_(PREFILL))
    asked.says = DECODE
    asked.state.unreachable.add(KEY)
    asked.roles.follow()
    assert asked.state.roles == {}
    seen = len(asked.at)
    asked.state.unreachable.clear()
    asked.roles.follow()
    await until(asked.is_(DECODE))
    assert len(asked.at) == seen + 1  # at once


async def test_another_address_is_another_replica(asked: Asked) -> None:
    asked.says = PREFILL
    asked.roles.follow()
    await until(asked.is_(PREFILL))
    asked.put(port=2)
    asked.roles.follow()
    assert asked.state.roles == {}
    await until(asked.is_(PREFILL))
    assert asked.at[-1] == TcpAddress("10.0.0.1", 2)


@pytest.mark.parametrize("router", [None, RouterSpec("any")])
async def test_where_there_are_no_roles_nobody_is_asked(
    asked: Asked, router: RouterSpec | None
) -> None:
    asked.says = PREFILL
    asked.roles.follow()
    await until(asked.is_(PREFILL))
    asked.put(router=router)
    asked.roles.follow()
    assert asked.state.roles == {}
    assert repr(asked.roles) == "<Roles 0 of 0 known>"


async def test_a_regular_one_is_said(asked: Asked, caplog: pytest.LogCaptureFixture) -> None:
    asked.says = ReplicaRole("regular")
    asked.roles.follow()
    await until(asked.is_(ReplicaRole("regular")))
    assert "replica a of main/llama is neither prefill nor decode: it gets no request" in (
        caplog.text
    )


async def test_an_accident_is_logged_and_not_the_end(
    asked: Asked, caplog: pytest.LogCaptureFixture
) -> None:
    asked.says = ValueError("surprise")
    asked.roles.follow()
    await until(lambda: "surprise" in caplog.text)
    asked.says = DECODE
    await until(asked.is_(DECODE))
