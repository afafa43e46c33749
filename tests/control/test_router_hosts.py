"""Which routers there are, and what each is aimed at."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest
from plant import replica, service
from waiting import until

from gatewayd.control import router_hosts as module
from gatewayd.control.router_host import RouterHost
from gatewayd.control.router_hosts import RouterHosts
from gatewayd.control.state import State
from gatewayd.core.model import (
    Endpoint,
    ReplicaRole,
    Role,
    RouterSpec,
    RouterTraits,
    TcpAddress,
)
from gatewayd.core.snapshot import BridgePort
from gatewayd.routers.base import Target

KEY = "main/llama"
SPEC = RouterSpec("any")


@dataclass
class Host:
    service_key: str
    spec: RouterSpec
    endpoint: TcpAddress | None = None
    traits: RouterTraits = field(default_factory=RouterTraits)
    serving: bool = True
    lacks: tuple[Role, ...] = ()
    restarts: int = 0
    calls: list[str] = field(default_factory=list)
    drops: bool = True

    async def start(self) -> None:
        self.calls.append("start")

    def set_targets(self, targets: list[Target]) -> None:
        self.calls.append(" ".join(map(shown, targets)) or "nothing")

    async def drop(self, ids: list[str], timeout: float) -> bool:
        self.calls.append(f"drop {' '.join(ids)}")
        return self.drops

    def status(self) -> dict[str, Any]:
        return {"state": "ready"}

    async def aclose(self) -> None:
        self.calls.append("close")


def shown(target: Target) -> str:
    meets = f":{target.bootstrap_port}" if target.bootstrap_port else ""
    return f"{target.id}={target.url}" + (f" {target.role}{meets}" if target.role else "")


def bridged(port: int, role: ReplicaRole | None = None) -> BridgePort:
    endpoint = Endpoint("", TcpAddress("10.0.0.1", 1), 0)
    return BridgePort(port, endpoint, KEY, None, None, None, role=role)


class Fixture:
    def __init__(self) -> None:
        self.state = State()
        self.ports = {"a": bridged(10001), "b": bridged(10002)}
        self.loads: dict[tuple[str, str], int] = {}
        self.made: list[Host] = []
        self.hosts = RouterHosts(
            self.state,
            self._make,
            port_of=lambda _, replica_id: self.ports.get(replica_id),
            load=lambda key: self.loads.get(key, 0),
            on_change=lambda: None,
        )

    def _make(self, key: str, spec: RouterSpec, on_change: Callable[[], None]) -> RouterHost:
        self.made.append(Host(key, spec))
        return cast(RouterHost, self.made[-1])

    def have(self, *replicas: str, router: RouterSpec | None = SPEC) -> None:
        self.state.services = {KEY: service("llama", *replicas, router=router)}
        self.hosts.follow()


@pytest.fixture
def fixture() -> Fixture:
    return Fixture()


async def test_a_service_without_a_router_has_none(fixture: Fixture) -> None:
    fixture.have("a", router=None)
    assert fixture.made == []
    assert fixture.hosts.view(KEY) is None
    assert fixture.hosts.status(KEY) is None


async def test_a_router_is_aimed_at_the_ports_of_its_replicas(fixture: Fixture) -> None:
    fixture.have("a", "b", "unleased")
    (host,) = fixture.made
    assert host.calls == ["a=http://127.0.0.1:10001 b=http://127.0.0.1:10002"]
    await asyncio.sleep(0)
    assert host.calls[-1] == "start"
    await fixture.hosts.aclose()
    assert host.calls[-1] == "close"


async def test_draining_and_unreachable_replicas_are_no_targets(fixture: Fixture) -> None:
    fixture.have("a", "b")
    llama = fixture.state.services[KEY]
    fixture.state.unreachable.add((KEY, "b"))
    fixture.hosts.follow()
    assert fixture.made[0].calls[-1] == "a=http://127.0.0.1:10001"
    fixture.state.services[KEY] = replace(
        llama, replicas=(replica("a", draining=True), llama.replicas[1])
    )
    fixture.hosts.follow()
    assert fixture.made[0].calls[-1] == "nothing"


async def test_the_endpoint_is_named_anew_with_each_port(fixture: Fixture) -> None:
    fixture.have("a")
    view = fixture.hosts.view(KEY)
    assert view is not None
    assert view.address is None
    names = set()
    for port in (20000, 20001):
        fixture.made[0].endpoint = TcpAddress("127.0.0.1", port)
        view = fixture.hosts.view(KEY)
        assert view is not None
        assert view.address == fixture.made[0].endpoint
        names.add(view.endpoint_id)
    assert len(names) == 2


async def test_a_router_without_a_target_is_not_used(fixture: Fixture) -> None:
    fixture.have("a")
    fixture.made[0].endpoint = TcpAddress("127.0.0.1", 20000)
    fixture.made[0].serving = False
    view = fixture.hosts.view(KEY)
    assert view is not None
    assert view.address is None


async def test_a_router_nobody_wants_ends_when_nothing_runs_through_it(
    fixture: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RETIRE_POLL_S", 0.005)
    fixture.have("a")
    (host,) = fixture.made
    host.endpoint = TcpAddress("127.0.0.1", 20000)
    view = fixture.hosts.view(KEY)
    assert view is not None
    fixture.loads[KEY, view.endpoint_id] = 1
    fixture.state.services = {}
    fixture.hosts.follow()
    assert fixture.hosts.view(KEY) is None
    await asyncio.sleep(0.1)
    assert "close" not in host.calls
    fixture.loads.clear()
    await until(lambda: "close" in host.calls)


async def test_another_spec_is_another_router(fixture: Fixture) -> None:
    fixture.have("a")
    fixture.have("a", router=replace(SPEC, policy="random"))
    old, new = fixture.made
    assert new.spec.policy == "random"
    await until(lambda: "close" in old.calls)
    fixture.have("a", "b", router=replace(SPEC, policy="random"))
    assert len(fixture.made) == 2
    await fixture.hosts.aclose()


async def test_a_router_that_keeps_a_target_is_said(
    fixture: Fixture, caplog: pytest.LogCaptureFixture
) -> None:
    fixture.have("a", "b")
    await fixture.hosts.drop(KEY, ["a"])
    assert caplog.text == ""
    fixture.made[0].drops = False
    await fixture.hosts.drop(KEY, ["b"])
    assert f"router of {KEY} still has b" in caplog.text
    await fixture.hosts.drop("main/none", ["b"])


async def test_closing_does_not_wait_for_what_runs(fixture: Fixture) -> None:
    fixture.have("a")
    (host,) = fixture.made
    host.endpoint = TcpAddress("127.0.0.1", 20000)
    view = fixture.hosts.view(KEY)
    assert view is not None
    fixture.loads[KEY, view.endpoint_id] = 1
    fixture.state.services = {}
    fixture.hosts.follow()
    await asyncio.sleep(0)
    await asyncio.wait_for(fixture.hosts.aclose(), 5)
    assert host.calls[-1] == "close"


async def test_roles_are_told_once_the_bridge_knows_them(fixture: Fixture) -> None:
    apart = replace(SPEC, pd_disaggregation=True)
    fixture.have("a", "b", "c", router=apart)
    (host,) = fixture.made
    assert host.calls == ["nothing"]
    prefill, decode = ReplicaRole("prefill", 8998), ReplicaRole("decode")
    fixture.state.roles = {
        (KEY, "a"): prefill,
        (KEY, "b"): decode,
        (KEY, "c"): ReplicaRole("regular"),
    }
    fixture.ports["c"] = bridged(10003, ReplicaRole("regular"))
    fixture.hosts.follow()
    assert host.calls[-1] == "nothing"
    fixture.ports |= {"a": bridged(10001, prefill), "b": bridged(10002, decode)}
    fixture.hosts.follow()
    assert host.calls[-1] == (
        "a=http://127.0.0.1:10001 prefill:10001 b=http://127.0.0.1:10002 decode"
    )
    fixture.state.roles[KEY, "a"] = ReplicaRole("prefill", 8999)  # not there yet
    del fixture.state.roles[KEY, "b"]
    fixture.hosts.follow()
    assert host.calls[-1] == "nothing"
    await fixture.hosts.aclose()
