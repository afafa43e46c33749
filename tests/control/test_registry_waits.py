"""What takes its time: tunnels, certificates, a disk. Nobody waits for another's, and what fails
leaves nothing behind."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from plant import Plant, Running, service
from waiting import until

from gatewayd.control.certs import CertificateError
from gatewayd.control.conflicts import RefusedError
from gatewayd.control.keeper import NotSavedError
from gatewayd.control.outside import TunnelError
from gatewayd.core.entrypoint import Entrypoint
from gatewayd.core.model import Replica, SshHop, SshTunnel, UnixAddress
from gatewayd.core.secret import Secret

MakePlant = Callable[..., Plant]
KEY = "main/llama"
WAY = SshTunnel((SshHop("u@h", 22, Secret("key")),), 8000)
OTHER_WAY = replace(WAY, app_port=8001)


def tunneled(id_: str, way: SshTunnel = WAY) -> Replica:
    return Replica(id_, UnixAddress(""), "api", tunnel=way)


@dataclass
class FakeTunnels:
    """Open when `go` is set; `fault` is what ssh says then."""

    up: set[tuple[str, str]] = field(default_factory=set)
    calls: list[str] = field(default_factory=list)
    go: asyncio.Event = field(default_factory=asyncio.Event)
    fault: str = ""
    parted: int = 0

    def address(self, service_key: str, replica_id: str) -> UnixAddress:
        return UnixAddress(f"/run/tunnels/{replica_id}{self.parted or ''}.sock")

    async def open(self, service_key: str, replica: Replica) -> None:
        self.calls.append(f"open {replica.id} {replica.address}")
        await self.go.wait()
        if self.fault:
            raise TunnelError(self.fault)
        self.up.add((service_key, replica.id))

    def adopt(self, service_key: str, replica: Replica) -> None:
        self.calls.append(f"adopt {replica.id}")

    async def close(self, service_key: str, replica_id: str) -> None:
        self.calls.append(f"close {replica_id}")
        self.up.discard((service_key, replica_id))

    def part(self, service_key: str, replica_id: str) -> Callable[[], Awaitable[None]]:
        self.calls.append(f"part {replica_id}")
        self.up.discard((service_key, replica_id))
        self.parted += 1
        return functools.partial(self.close, service_key, f"parted {replica_id}")

    def is_up(self, service_key: str, replica_id: str) -> bool:
        return (service_key, replica_id) in self.up


@dataclass
class FakeCertificates:
    go: asyncio.Event = field(default_factory=asyncio.Event)
    fault: str = ""
    asked: list[tuple[str, ...]] = field(default_factory=list)

    async def ensure(self, names: tuple[str, ...]) -> None:
        self.asked.append(names)
        await self.go.wait()
        if self.fault:
            raise CertificateError(self.fault)


def endpoints(plant: Plant) -> list[str]:
    return list(plant.frames("snapshot")[-1]["targets"]["llama.example.com"]["endpoints"])


async def ready(plant: Plant, **more: Any) -> None:
    await plant.publisher.publish()
    await plant.all_ready()
    await plant.registry.add_service(service("llama", origin="api", **more))


async def test_a_slow_tunnel_delays_nobody_else(make_plant: MakePlant) -> None:
    tunnels = FakeTunnels()
    async with make_plant(workers=1, tunnels=tunnels) as plant:
        await ready(plant)
        slow = asyncio.create_task(plant.registry.add_replica(KEY, tunneled("a")))
        await until(lambda: bool(tunnels.calls))
        await plant.registry.add_service(service("other", origin="api"))
        await plant.registry.add_replica(KEY, Replica("b", UnixAddress("/run/b.sock"), "api"))
        assert endpoints(plant) == ["b"]
        tunnels.go.set()
        await slow
        assert endpoints(plant) == ["b", "a"]
        added = plant.state.replica(KEY, "a")
        assert added is not None
        assert added.address == UnixAddress("/run/tunnels/a.sock")


async def test_of_the_same_replica_one_registration_wins(make_plant: MakePlant) -> None:
    tunnels = FakeTunnels()
    async with make_plant(workers=1, tunnels=tunnels) as plant:
        await ready(plant)
        calls = [
            asyncio.create_task(plant.registry.add_replica(KEY, tunneled("a"))) for _ in range(5)
        ]
        await until(lambda: bool(tunnels.calls))
        tunnels.go.set()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [str(r) for r in results if r is not None] == [
            f"Replica a already exists in service {KEY}"
        ] * 4
        assert tunnels.calls == ["open a unix:/run/tunnels/a.sock"]


async def test_a_tunnel_that_fails_says_what_ssh_said(make_plant: MakePlant) -> None:
    tunnels = FakeTunnels(fault="u@h: Permission denied (publickey).")
    tunnels.go.set()
    async with make_plant(workers=1, tunnels=tunnels) as plant:
        await ready(plant)
        with pytest.raises(RefusedError) as refused:
            await plant.registry.add_replica(KEY, tunneled("a"))
        assert str(refused.value) == (
            f"Cannot register replica a in service {KEY}: u@h: Permission denied (publickey)."
        )
        assert plant.state.replica(KEY, "a") is None
        tunnels.fault = ""
        await plant.registry.add_replica(KEY, tunneled("a"))


async def test_a_service_that_goes_while_a_tunnel_opens(make_plant: MakePlant) -> None:
    tunnels = FakeTunnels()
    async with make_plant(workers=1, tunnels=tunnels) as plant:
        await ready(plant)
        slow = asyncio.create_task(plant.registry.add_replica(KEY, tunneled("a")))
        await until(lambda: bool(tunnels.calls))
        await plant.registry.remove_service(KEY)
        tunnels.go.set()
        with pytest.raises(RefusedError, match="does not exist, cannot register replica"):
            await slow
        assert tunnels.calls[-1] == "close a"


async def test_a_tunnel_closes_when_its_last_request_has_ended(make_plant: MakePlant) -> None:
    tunnels = FakeTunnels()
    tunnels.go.set()
    async with make_plant(workers=1, tunnels=tunnels) as plant:
        await ready(plant)
        await plant.registry.add_replica(KEY, tunneled("a"))
        running = Running(plant, KEY, "a")
        async with asyncio.timeout(30):  # the call waits for no request
            await plant.registry.remove_replica(KEY, "a")
        assert endpoints(plant) == []
        await asyncio.sleep(0.15)
        assert "close a" not in tunnels.calls
        running.end_one()
        await until(lambda: tunnels.calls[-1] == "close a")
        running.table.close()


async def test_a_tunnel_closes_at_the_drain_deadline(make_plant: MakePlant) -> None:
    tunnels = FakeTunnels()
    tunnels.go.set()
    async with make_plant(workers=1, tunnels=tunnels, drain_timeout=0.2) as plant:
        await ready(plant)
        await plant.registry.add_replica(KEY, tunneled("a"))
        running = Running(plant, KEY, "a")
        await plant.registry.remove_service(KEY)
        await until(lambda: tunnels.calls[-1] == "close a")
        running.table.close()


async def test_registered_again_at_once_it_keeps_its_tunnel(make_plant: MakePlant) -> None:
    """What older servers do when they find a service registered already."""
    tunnels = FakeTunnels()
    tunnels.go.set()
    async with make_plant(workers=1, tunnels=tunnels) as plant:
        await ready(plant)
        await plant.registry.add_replica(KEY, tunneled("a"))
        running = Running(plant, KEY, "a")  # a stream that goes through it
        await plant.registry.remove_service(KEY)
        await plant.registry.add_service(service("llama", origin="api"))
        await plant.registry.add_replica(KEY, tunneled("a"))
        assert tunnels.calls == ["open a unix:/run/tunnels/a.sock"]
        assert endpoints(plant) == ["a"]
        running.table.close()


async def test_registered_again_in_another_way_it_waits_for_no_request(
    make_plant: MakePlant,
) -> None:
    """Else a call would take a drain time, which may be longer than who registers has patience."""
    tunnels = FakeTunnels()
    tunnels.go.set()
    async with make_plant(workers=1, tunnels=tunnels, drain_timeout=3600) as plant:
        await ready(plant)
        await plant.registry.add_replica(KEY, tunneled("a"))
        running = Running(plant, KEY, "a")
        await plant.registry.remove_replica(KEY, "a")
        async with asyncio.timeout(30):
            await plant.registry.add_replica(KEY, tunneled("a", OTHER_WAY))
        assert tunnels.calls[1:] == ["part a", "open a unix:/run/tunnels/a1.sock"]
        assert endpoints(plant) == ["a"]
        running.end_one()
        await until(lambda: tunnels.calls[-1] == "close parted a")
        assert tunnels.is_up(KEY, "a")
        running.table.close()


async def test_a_reload_leads_another_way_at_once(make_plant: MakePlant) -> None:
    tunnels = FakeTunnels()
    async with make_plant(workers=1, tunnels=tunnels, drain_timeout=3600) as plant:
        await ready(plant)
        of_file = replace(service("llama"), replicas=(tunneled("a"),))
        await plant.registry.replace_all({KEY: of_file}, None, (), "main", None, None)
        running = Running(plant, KEY, "a")
        changed = replace(of_file, replicas=(tunneled("a", OTHER_WAY),))
        await plant.registry.replace_all({KEY: changed}, None, (), "main", None, None)
        await until(lambda: tunnels.calls[-1] == "adopt a" and tunnels.calls.count("adopt a") == 2)
        assert plant.state.services[KEY].replicas[0].address == UnixAddress("/run/tunnels/a1.sock")
        assert "close parted a" not in tunnels.calls
        running.end_one()
        await until(lambda: tunnels.calls[-1] == "close parted a")
        running.table.close()


async def test_a_tunnel_that_is_down_is_out_of_rotation(make_plant: MakePlant) -> None:
    tunnels = FakeTunnels()
    tunnels.go.set()
    async with make_plant(workers=1, tunnels=tunnels) as plant:
        await ready(plant)
        await plant.registry.add_replica(KEY, tunneled("a"))
        await plant.registry.add_replica(KEY, tunneled("b"))
        tunnels.up.discard((KEY, "a"))
        plant.registry.tunnels_changed()
        await until(lambda: endpoints(plant) == ["b"])
        assert plant.state.replica_state(KEY, tunneled("a")) == "connecting"
        tunnels.up.add((KEY, "a"))
        plant.registry.tunnels_changed()
        await until(lambda: endpoints(plant) == ["a", "b"])


async def test_at_the_start_tunnels_open_by_themselves(make_plant: MakePlant) -> None:
    tunnels = FakeTunnels()
    async with make_plant(workers=1, tunnels=tunnels) as plant:
        restored = replace(service("llama", origin="api"), replicas=(tunneled("a"), tunneled("b")))
        plant.state.services[KEY] = restored
        plant.registry.resume()
        assert tunnels.calls == ["adopt a", "adopt b"]
        await plant.publisher.publish()
        await plant.all_ready()
        assert endpoints(plant) == []
        compiled = plant.publisher._snapshot
        assert compiled is not None
        assert compiled.targets["llama.example.com"].upstream.coming  # so its requests wait
        assert not compiled.targets["llama.example.com"].service.replicas  # nor keys of theirs
        tunnels.up |= {(KEY, "a"), (KEY, "b")}
        plant.registry.tunnels_changed()
        await until(lambda: endpoints(plant) == ["a", "b"])


async def test_a_slow_certificate_delays_nobody_else(make_plant: MakePlant) -> None:
    certificates = FakeCertificates()
    async with make_plant(workers=1, certificates=certificates) as plant:
        await ready(plant)
        safe = service("safe", origin="api", https=True)
        slow, twin = (asyncio.create_task(plant.registry.add_service(safe)) for _ in "ab")
        same_domain = asyncio.create_task(
            plant.registry.add_service(replace(safe, name="thief", https=False))
        )
        await until(lambda: bool(certificates.asked))
        await plant.registry.add_service(service("other", origin="api"))
        assert "main/safe" not in plant.state.services
        certificates.go.set()
        results = await asyncio.gather(slow, twin, same_domain, return_exceptions=True)
        assert [str(result) for result in results] == [
            "None",
            "Service main/safe is already registered",
            "Domain name 'safe.example.com' is already taken by another service",
        ]
        assert certificates.asked == [("safe.example.com",)]


async def test_without_its_certificate_a_service_is_not_registered(make_plant: MakePlant) -> None:
    certificates = FakeCertificates(fault="Could not obtain safe.example.com TLS certificate")
    certificates.go.set()
    async with make_plant(workers=1, certificates=certificates) as plant:
        await ready(plant)
        with pytest.raises(RefusedError, match="Could not obtain"):
            await plant.registry.add_service(service("safe", origin="api", https=True))
        with pytest.raises(RefusedError, match="Could not obtain"):
            await plant.registry.add_entrypoint(Entrypoint("main", "gateway.example.com", True))
        assert "main/safe" not in plant.state.services
        assert not plant.state.entrypoints
        await plant.registry.add_service(service("safe", origin="api"))  # the names are free


async def test_what_cannot_be_saved_is_not_served(make_plant: MakePlant) -> None:
    tunnels = FakeTunnels()
    tunnels.go.set()
    full = False

    async def keep() -> None:
        if full:
            plant.state.services[KEY] = service("llama", origin="api")  # as the keeper does
            raise NotSavedError("cannot save the state: No space left on device")

    async with make_plant(workers=1, tunnels=tunnels, keep=keep) as plant:
        await ready(plant)
        full = True
        with pytest.raises(NotSavedError):
            await plant.registry.add_replica(KEY, tunneled("a"))
        assert tunnels.calls[-1] == "close a"
        full = False
        await plant.registry.add_replica(KEY, tunneled("b"))
        assert endpoints(plant) == ["b"]
