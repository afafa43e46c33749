"""What was published is everywhere when the call returns; the bridge knows its ports first."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import replace

import pytest
from plant import Plant, service
from waiting import until

from gatewayd.control import leases as leases_module
from gatewayd.control import publisher as publisher_module
from gatewayd.core.messages import CertificatePair
from gatewayd.net.loads import LoadTable

MakePlant = Callable[..., Plant]
KEY = "main/llama"


async def test_a_publish_returns_when_every_worker_has_it(make_plant: MakePlant) -> None:
    async with make_plant() as plant:
        await plant.publisher.publish()
        await plant.all_ready()
        plant.state.services[KEY] = service("llama", "a", "b")
        await plant.publisher.publish()
        newest = [f for f in plant.frames("snapshot") if f["version"] == plant.publisher.version]
        assert len(newest) == 2
        for frame in newest:
            target = frame["targets"]["llama.example.com"]
            assert target["endpoints"] == {"a": "unix:/run/a.sock", "b": "unix:/run/b.sock"}
            assert target["mode"] == "direct"


async def test_concurrent_calls_share_a_snapshot(make_plant: MakePlant) -> None:
    async with make_plant() as plant:
        await plant.publisher.publish()
        await plant.all_ready()
        before = plant.publisher.version

        async def add(name: str) -> None:
            plant.state.services[f"main/{name}"] = service(name)
            await plant.publisher.publish()

        await asyncio.gather(*(add(f"s{n}") for n in range(40)))
        assert plant.publisher.version <= before + 2
        assert len(plant.frames("snapshot")[-1]["targets"]) == 40


async def test_a_worker_that_does_not_acknowledge_delays_but_does_not_block(
    make_plant: MakePlant, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(publisher_module, "ACK_TIMEOUT_S", 0.3)
    async with make_plant(behaviours={1: "deaf"}) as plant:
        await plant.publisher.publish()
        await plant.all_ready()
        first = asyncio.create_task(plant.publisher.publish())
        await until(lambda: plant.publisher.version == 2)
        await asyncio.wait_for(plant.process(0).when_acked(2), 5)  # while the first call waits
        second = asyncio.create_task(plant.publisher.publish())
        await until(lambda: plant.process(0).acked == 3)
        assert not first.done()
        await asyncio.wait_for(asyncio.gather(first, second), 5)
        assert not plant.publisher.up_to_date()
    assert "snapshot 2 not acknowledged by <worker 1" in caplog.text


async def test_the_death_of_a_worker_ends_the_wait_for_it(make_plant: MakePlant) -> None:
    async with make_plant(behaviours={1: "deaf"}) as plant:
        await plant.publisher.publish()
        await plant.all_ready()
        waiting = asyncio.create_task(plant.publisher.publish())
        await until(lambda: plant.process(0).acked == 2)
        plant.behaviours[1] = "ack"
        plant.process(1).kill()
        await asyncio.wait_for(waiting, 2)
        await plant.all_ready()


async def test_requests_to_publish_are_answered_soon(make_plant: MakePlant) -> None:
    async with make_plant() as plant:
        await plant.publisher.publish()
        await plant.all_ready()
        plant.state.services[KEY] = service()
        plant.publisher.request()
        await until(lambda: plant.publisher.version == 2)
        await plant.all_ready()


async def test_draining_replicas_take_no_new_requests(make_plant: MakePlant) -> None:
    async with make_plant(workers=1) as plant:
        llama = service("llama", "a", "b")
        draining = replace(llama.replicas[0], draining=True)
        plant.state.services[KEY] = replace(llama, replicas=(draining, llama.replicas[1]))
        await plant.publisher.publish()
        await plant.all_ready()
        target = plant.frames("snapshot")[-1]["targets"]["llama.example.com"]
        assert list(target["endpoints"]) == ["b"]


async def test_an_index_stays_with_a_replica_over_changes(make_plant: MakePlant) -> None:
    async with make_plant(workers=1) as plant:
        plant.state.services[KEY] = service("llama", "a", "b")
        await plant.publisher.publish()
        await plant.all_ready()
        before = plant.frames("snapshot")[-1]["targets"]["llama.example.com"]["indexes"]
        plant.state.services[KEY] = service("llama", "c", "b")
        await plant.publisher.publish()
        after = plant.frames("snapshot")[-1]["targets"]["llama.example.com"]["indexes"]
        assert after["b"] == before["b"]
        assert after["c"] not in before.values()


# --- with a router -------------------------------------------------------------------------------


async def routed(plant: Plant, *replicas: str) -> None:
    plant.state.services[KEY] = service("llama", *replicas)
    plant.routers.put(KEY, None)
    await plant.publisher.publish()
    await plant.all_ready()
    await until(lambda: plant.publisher.bridge_port(KEY, replicas[-1]) is not None)


async def test_no_router_no_bridge(make_plant: MakePlant) -> None:
    async with make_plant() as plant:
        plant.state.services[KEY] = service("llama", "a")
        await plant.publisher.publish()
        await plant.all_ready()
        assert not plant.workers.bridge_wanted
        assert plant.publisher.bridge_port(KEY, "a") is None


async def test_a_router_may_be_told_of_a_port_when_the_bridge_has_it(
    make_plant: MakePlant,
) -> None:
    async with make_plant() as plant:
        plant.state.services[KEY] = service("llama", "a")
        plant.routers.put(KEY, None)
        await plant.publisher.publish()
        assert plant.publisher.bridge_port(KEY, "a") is None  # the bridge is only starting
        published = plant.published
        await until(lambda: plant.publisher.bridge_port(KEY, "a") is not None)
        await until(lambda: plant.published > published)  # and routers hear of it
        port = plant.publisher.bridge_port(KEY, "a")
        assert plant.frames("ports")[-1]["ports"] == [port]
        await plant.all_ready()

        plant.state.services[KEY] = service("llama", "a", "b")
        await plant.publisher.publish()
        assert plant.publisher.bridge_port(KEY, "a") == port
        assert plant.publisher.bridge_port(KEY, "b") not in (None, port)


async def test_requests_go_through_a_router_that_is_up(make_plant: MakePlant) -> None:
    async with make_plant(workers=1) as plant:
        await routed(plant, "a")
        target = plant.frames("snapshot")[-1]["targets"]["llama.example.com"]
        assert (target["mode"], target["router"]) == ("direct", "None")
        plant.routers.put(KEY, 20001)
        await plant.publisher.publish()
        target = plant.frames("snapshot")[-1]["targets"]["llama.example.com"]
        assert (target["mode"], target["router"]) == ("through", "127.0.0.1:20001")
        assert list(target["endpoints"]) == ["a"]  # to fall back on
        plant.state.services[KEY] = service("llama")
        await plant.publisher.publish()
        target = plant.frames("snapshot")[-1]["targets"]["llama.example.com"]
        assert (target["mode"], target["router"]) == ("direct", "None")


async def test_more_ports_than_fit_a_frame(make_plant: MakePlant) -> None:
    async with make_plant(workers=1) as plant:
        await routed(plant, *(f"r{n}" for n in range(230)))
        frames = plant.frames("ports")
        assert [frame["new"] for frame in frames] == [200, 30]
        assert all(frame["missing"] == [] for frame in frames)
        assert len(frames[-1]["ports"]) == 230


async def test_a_new_bridge_gets_all_ports_and_no_connection_is_refused_meanwhile(
    make_plant: MakePlant,
) -> None:
    async with make_plant(workers=1) as plant:
        await routed(plant, "a", "b")
        ports = {plant.publisher.bridge_port(KEY, name) for name in ("a", "b")}
        old = plant.process(1).pid
        os.kill(old, signal.SIGKILL)
        await until(lambda: "died bridge 1.1" in plant.events)
        for port in ports:
            assert port is not None
            with socket.create_connection(("127.0.0.1", port), timeout=5):
                pass
        assert {plant.publisher.bridge_port(KEY, name) for name in ("a", "b")} == ports
        await until(lambda: "ready bridge 1.2" in plant.events)
        frame = plant.frames("ports", plant.process(1).pid)[0]
        assert (set(frame["ports"]), frame["new"], frame["missing"]) == (ports, 2, [])


async def test_a_port_outlives_its_replica_until_the_last_request_ended(
    make_plant: MakePlant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases_module, "LINGER_S", 0.1)
    async with make_plant(workers=1) as plant:
        await routed(plant, "a", "b")
        port = plant.publisher.bridge_port(KEY, "a")
        index = plant.indexes.lease((KEY, "a"))
        bridge = LoadTable.attach(os.dup(plant.loads.fd), plant.loads.slots, 1)
        bridge.add(index)
        plant.state.services[KEY] = service("llama", "b")
        await plant.publisher.publish()
        assert port in plant.frames("ports")[-1]["ports"]
        bridge.done(index)
        await until(lambda: port not in plant.frames("ports")[-1]["ports"])
        assert plant.publisher.bridge_port(KEY, "a") is None
        bridge.close()


async def test_a_full_range_of_ports_leaves_the_service_working(
    make_plant: MakePlant, caplog: pytest.LogCaptureFixture
) -> None:
    async with make_plant(workers=1) as plant:
        plant.ports._last = plant.ports._first
        await routed(plant, "a")
        plant.state.services[KEY] = service("llama", "a", "b")
        await plant.publisher.publish()
        target = plant.frames("snapshot")[-1]["targets"]["llama.example.com"]
        assert list(target["endpoints"]) == ["a", "b"]
        assert plant.publisher.bridge_port(KEY, "b") is None
    assert "main/llama: replica b: no free bridge port" in caplog.text


async def test_certificates_reach_every_worker_also_one_born_later(make_plant: MakePlant) -> None:
    async with make_plant() as plant:
        pair = CertificatePair(("a.example", "*.b.example"), b"chain", b"key")
        await plant.publisher.certify((pair,), "a.example")
        await plant.publisher.publish()
        await plant.all_ready()
        await plant.publisher.challenge({"token": "answer"}, {"c.example": pair})
        assert [frame["alpn"] for frame in plant.frames("challenges")] == [["c.example"]] * 2
        plant.process(0).kill(signal.SIGKILL)
        await until(lambda: "ready worker 0.2" in plant.events)
        kinds = [f["frame"] for f in plant.frames_of(plant.process(0).pid)]
        assert kinds[:4] == ["configure", "certificates", "challenges", "snapshot"]
        (frame,) = plant.frames("certificates", plant.process(0).pid)
        assert frame["names"] == ["a.example", "*.b.example"]
        assert frame["default"] == "a.example"
        assert "key" not in repr(pair)
