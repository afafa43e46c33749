"""Changes at run time: their order, their refusals, and that nothing that runs is cut."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
from plant import Plant, Running, replica, service
from waiting import until

from gatewayd.control import leases
from gatewayd.control.conflicts import RefusedError
from gatewayd.control.registry import Drained
from gatewayd.core import snapshot
from gatewayd.core.model import RateLimit, RouterSpec, Service
from gatewayd.core.ratelimit import Rule

MakePlant = Callable[..., Plant]
KEY = "main/llama"


async def serving(plant: Plant, *replicas: str, **more: Any) -> None:
    await plant.publisher.publish()
    await plant.all_ready()
    await plant.registry.add_service(service("llama", *replicas, origin="api", **more))
    plant.routers.calls.clear()


def endpoints(plant: Plant) -> list[str]:
    return list(plant.frames("snapshot")[-1]["targets"]["llama.example.com"]["endpoints"])


async def test_a_replica_is_everywhere_when_the_call_returns(make_plant: MakePlant) -> None:
    async with make_plant() as plant:
        await serving(plant)
        await plant.registry.add_replica(KEY, replica("a"))
        assert {f["version"] for f in plant.frames("snapshot")[-2:]} == {plant.publisher.version}
        assert endpoints(plant) == ["a"]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda r: r.add_service(service()), "Service main/llama is already registered"),
        (
            lambda r: r.add_service(Service("other", "y", ("llama.example.com",))),
            "Domain name 'llama.example.com' is already taken by another service",
        ),
        (
            lambda r: r.remove_service("main/none"),
            "Service main/none is not registered, cannot unregister",
        ),
        (
            lambda r: r.add_replica("main/none", replica("a")),
            "Service main/none does not exist, cannot register replica",
        ),
        (
            lambda r: r.add_replica(KEY, replica("a")),
            "Replica a already exists in service main/llama",
        ),
        (
            lambda r: r.remove_replica("main/none", "a"),
            "Service main/none does not exist, cannot unregister replica",
        ),
        (
            lambda r: r.remove_replica(KEY, "b"),
            "Replica b does not exist in service main/llama, cannot unregister",
        ),
        (
            lambda r: r.drain_replica(KEY, "b", 1.0),
            "Replica b does not exist in service main/llama, cannot unregister",
        ),
    ],
)
async def test_refusals_say_why_and_change_nothing(
    make_plant: MakePlant, call: Callable[..., object], text: str
) -> None:
    async with make_plant(workers=1) as plant:
        await serving(plant, "a")
        before = (dict(plant.state.services), plant.publisher.version)
        with pytest.raises(RefusedError) as refused:
            await call(plant.registry)  # type: ignore[misc]
        assert str(refused.value) == text
        assert (plant.state.services, plant.publisher.version) == before


async def test_a_service_of_the_file_stays(make_plant: MakePlant) -> None:
    async with make_plant(workers=1) as plant:
        await serving(plant)
        plant.state.services[KEY] = service(origin="file")
        with pytest.raises(RefusedError, match="belongs to the configuration file"):
            await plant.registry.remove_service(KEY)
        await plant.registry.add_replica(KEY, replica("new", origin="api"))
        assert endpoints(plant) == ["new"]


async def test_a_replica_leaves_the_router_before_the_workers(make_plant: MakePlant) -> None:
    async with make_plant(workers=1) as plant:
        await serving(plant, "a", "b", router=RouterSpec("any"))
        seen: list[list[str]] = []

        async def drop(service_key: str, replica_ids: list[str]) -> None:
            seen.append(endpoints(plant))

        plant.routers.drop = drop  # type: ignore[method-assign]
        await plant.registry.remove_replica(KEY, "a")
        assert seen == [["a", "b"]]
        # The last one: workers must not ask a router that has nobody to choose.
        await plant.registry.remove_replica(KEY, "b")
        assert seen == [["a", "b"], []]
        assert endpoints(plant) == []


async def test_draining_waits_for_what_runs(make_plant: MakePlant) -> None:
    async with make_plant(workers=1) as plant:
        await serving(plant, "a", "b")
        running = Running(plant, KEY, "a", 2)
        drain = asyncio.create_task(plant.registry.drain_replica(KEY, "a", 10.0))
        await until(lambda: endpoints(plant) == ["b"])
        assert plant.state.replica(KEY, "a") == replace(replica("a"), draining=True)
        running.end_one()
        await asyncio.sleep(0.15)
        assert not drain.done()
        running.end_one()
        assert await asyncio.wait_for(drain, 5) == Drained(running=0)
        assert plant.state.replica(KEY, "a") is None
        running.table.close()


async def test_draining_ends_at_the_deadline_and_says_how_many_run(make_plant: MakePlant) -> None:
    async with make_plant(workers=1) as plant:
        await serving(plant, "a")
        running = Running(plant, KEY, "a", 3)
        assert await plant.registry.drain_replica(KEY, "a", 0.1) == Drained(running=3)
        assert plant.state.replica(KEY, "a") is None
        assert plant.loads.load(running.index) == 3  # nobody was cut
        await plant.registry.add_replica(KEY, replica("other"))
        assert plant.indexes.lease((KEY, "other")) != running.index
        running.table.close()


async def test_a_service_may_go_while_its_replica_drains(make_plant: MakePlant) -> None:
    async with make_plant(workers=1) as plant:
        await serving(plant, "a")
        running = Running(plant, KEY, "a", 1)
        drain = asyncio.create_task(plant.registry.drain_replica(KEY, "a", 10.0))
        await until(lambda: endpoints(plant) == [])
        await plant.registry.remove_service(KEY)
        running.end_one()
        assert await asyncio.wait_for(drain, 5) == Drained(running=0)
        assert KEY not in plant.state.services
        running.table.close()


async def test_random_changes_of_many_clients_are_in_some_order(make_plant: MakePlant) -> None:
    async with make_plant() as plant:
        await serving(plant)

        async def client(seed: int) -> int:
            chance, refused = random.Random(seed), 0  # noqa: S311
            for _ in range(40):
                key, id_ = f"main/s{chance.randrange(4)}", f"r{chance.randrange(5)}"
                change = chance.choice(("service", "gone", "replica", "replica", "out"))
                try:
                    match change:
                        case "service":
                            name = key.removeprefix("main/")
                            await plant.registry.add_service(service(name, origin="api"))
                        case "gone":
                            await plant.registry.remove_service(key)
                        case "replica":
                            await plant.registry.add_replica(key, replica(id_))
                        case "out":
                            await plant.registry.remove_replica(key, id_)
                except RefusedError:
                    refused += 1
            return refused

        await asyncio.gather(*(client(seed) for seed in range(20)))
        await plant.publisher.publish()
        shown = plant.frames("snapshot")[-1]["targets"]
        assert {host: sorted(target["endpoints"]) for host, target in shown.items()} == {
            s.domains[0]: sorted(r.id for r in s.replicas) for s in plant.state.services.values()
        }


async def test_a_replica_registered_anew_is_not_removed_by_an_older_call(
    make_plant: MakePlant,
) -> None:
    async with make_plant(workers=1) as plant:
        await serving(plant, "a", "b")
        running = Running(plant, KEY, "a", 1)
        drain = asyncio.create_task(plant.registry.drain_replica(KEY, "a", 10.0))
        await until(lambda: endpoints(plant) == ["b"])
        await plant.registry.remove_replica(KEY, "a")
        await plant.registry.add_replica(KEY, replica("a"))
        running.end_one()
        await asyncio.wait_for(drain, 5)
        assert plant.state.replica(KEY, "a") == replica("a")
        assert sorted(endpoints(plant)) == ["a", "b"]
        running.table.close()


async def test_what_cannot_be_told_to_workers_is_not_saved(
    make_plant: MakePlant, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[list[str]] = []
    compiled = snapshot.compile_limits

    def compile_limits(key: str, limits: Iterable[RateLimit]) -> tuple[Rule, ...]:
        if key == "main/bad":
            raise OverflowError
        return compiled(key, limits)

    async def keep() -> None:
        saved.append(list(plant.state.services))

    monkeypatch.setattr(snapshot, "compile_limits", compile_limits)
    async with make_plant(workers=1, keep=keep) as plant:
        await serving(plant)
        with pytest.raises(OverflowError):
            await plant.registry.add_service(service("bad", origin="api", model="m"))
        assert not plant.state.models
        await plant.registry.add_service(service("good", origin="api"))
        await plant.registry.add_replica(KEY, replica("a"))
        assert saved == [[KEY], [KEY, "main/good"], [KEY, "main/good"]]
        assert endpoints(plant) == ["a"]


async def test_a_reload_with_too_many_replicas_is_refused_whole(
    make_plant: MakePlant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "CAPACITY", 3)
    async with make_plant(workers=1) as plant:
        await serving(plant, "a")
        many = {KEY: service("llama", *"abcde")}
        with pytest.raises(RefusedError, match="more than 3 endpoints"):
            await plant.registry.replace_all(many, None, (), "other", None, None)
        assert [r.id for r in plant.state.services[KEY].replicas] == ["a"]
        assert plant.state.project == "main"
        await plant.registry.remove_replica(KEY, "a")  # what follows is not held up
        assert endpoints(plant) == []
