"""What is compiled, packed and read only where it differs is what would be made anew."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest
from plant import replica, service

from gatewayd.control.compiler import Compiler, RouterView
from gatewayd.control.leases import IndexLeases, PortLeases
from gatewayd.control.state import State
from gatewayd.core.entrypoint import Entrypoint, ModelEntry
from gatewayd.core.model import RouterTraits, TcpAddress, Token, TokensAuth
from gatewayd.core.packing import Packer, Unpacker
from gatewayd.core.snapshot import Snapshot
from gatewayd.net.loads import LoadTable

AUTH = TokensAuth((Token("a", b"x" * 32),))


@dataclass
class Routers:
    views: dict[str, RouterView] = field(default_factory=dict)

    def view(self, service_key: str) -> RouterView | None:
        return self.views.get(service_key)


@pytest.fixture
def indexes() -> Iterator[IndexLeases]:
    table = LoadTable.create(1)
    yield IndexLeases(table)
    table.close()


def compiler(state: State, indexes: IndexLeases, routers: Routers) -> Compiler:
    return Compiler(state, indexes, PortLeases(1, 2), routers)


def test_after_any_changes_it_is_what_would_be_made_anew(indexes: IndexLeases) -> None:
    state, routers = State(), Routers()
    one = compiler(state, indexes, routers)
    packer, unpacker = Packer(), Unpacker()
    chance = random.Random(7)  # noqa: S311
    for version in range(300):
        name = f"s{chance.randrange(6)}"
        key = f"main/{name}"
        match chance.randrange(8):
            case 0:
                state.services.pop(key, None)
            case 1 if key in state.services:
                state.connecting ^= {(key, f"{name}-a")}
            case 2 if key in state.services:
                port = TcpAddress("127.0.0.1", 20000 + chance.randrange(3))
                routers.views[key] = RouterView(f"@{port.port}", port, RouterTraits())
            case 3:
                routers.views.pop(key, None)
            case 4:
                state.auth = chance.choice((None, AUTH))
            case 5:
                state.project = chance.choice(("main", "other"))
            case 6:
                entry = ModelEntry("main", chance.choice("mn"), name, 5)
                state.models["main", entry.name] = entry
                state.entrypoints["main"] = Entrypoint("main", f"g{chance.randrange(2)}.example")
            case _:
                replicas = tuple(
                    replica(f"{name}-{letter}", draining=chance.random() < 0.2)
                    for letter in "abc"
                    if chance.random() < 0.7
                )
                state.services[key] = replace(service(name), replicas=replicas)
        compiled = one.snapshot(version)
        assert compiled == compiler(state, indexes, routers).snapshot(version)
        sent = pickle.loads(pickle.dumps(packer.pack(compiled)))  # noqa: S301
        assert unpacker.unpack(sent) == compiled
        assert Unpacker().unpack(sent) == compiled  # a worker that has just begun


def test_only_what_changed_is_made_again(indexes: IndexLeases) -> None:
    state = State()
    for name in "abc":
        state.services[f"main/{name}"] = service(name, name)
    one = compiler(state, indexes, Routers())
    packer, unpacker = Packer(), Unpacker()

    def read() -> Snapshot:
        return unpacker.unpack(packer.pack(one.snapshot(1)))

    first = read()
    state.services["main/b"] = service("b", "b", "more")
    second = read()
    same = {host for host, t in second.targets.items() if t is first.targets[host]}
    assert same == {"a.example.com", "c.example.com"}
