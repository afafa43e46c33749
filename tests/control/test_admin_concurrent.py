"""Many clients change the registry at once: some serial order explains every answer, and what is
left, in memory, on disk and at the workers."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from gateway import Gateway, running
from serial_order import Call, unexplained

from gatewayd.control.store import Store
from gatewayd.core.model import Replica

MAIN = "/api/registry/main/services"
PAIRS = 2  # of runs that want the same domain
OK = "ok"
NOBODY = "http://127.0.0.1:9"
SLOW = "j0"  # comes through a tunnel, which opens while others change the same service


class Pair(NamedTuple):
    """What the registry holds of two runs with one domain: the run that has it, whether it has an
    id, its replicas."""

    run: str | None = None
    has_id: bool = False
    jobs: frozenset[str] = frozenset()


def step(now: Pair, op: tuple[str, ...], answer: str) -> Pair | None:
    told, after = said(now, *op)
    return after if told == answer else None


def said(now: Pair, kind: str, run: str, job: str = "") -> tuple[str, Pair]:
    mine = now.run == run
    match kind:
        case "add" if mine:
            return f"Service main/{run} is already registered", now
        case "add" if now.run is not None:
            domain = f"d{int(run[1:]) // 2}.example.com"
            return f"Domain name '{domain}' is already taken by another service", now
        case "add":
            return OK, Pair(run)
        case "remove" if not mine:
            return f"Service main/{run} is not registered, cannot unregister", now
        case "remove":
            return OK, Pair()
        case "id" if not mine:
            return f"Service main/{run} does not exist, cannot set ID", now
        case "id" if now.has_id:
            return f"Service main/{run} already has an ID", now
        case "id":
            return OK, now._replace(has_id=True)
        case "replica" if not mine:
            return f"Service main/{run} does not exist, cannot register replica", now
        case "replica" if job in now.jobs:
            return f"Replica {job} already exists in service main/{run}", now
        case "replica":
            return OK, now._replace(jobs=now.jobs | {job})
        case _ if not mine:
            return f"Service main/{run} does not exist, cannot unregister replica", now
        case _ if job not in now.jobs:
            return f"Replica {job} does not exist in service main/{run}, cannot unregister", now
        case _:
            return OK, now._replace(jobs=now.jobs - {job})


def request(kind: str, run: str, job: str = "") -> tuple[str, Any]:
    match kind:
        case "add":
            domain = f"d{int(run[1:]) // 2}.example.com"
            return f"{MAIN}/register", {"run_name": run, "domain": domain}
        case "remove":
            return f"{MAIN}/{run}/unregister", None
        case "id":
            return f"{MAIN}/{run}/set_id", {"id": "0" * 32}
        case "replica":
            way = {"ssh_host": "u@h", "app_port": 1} if job == SLOW else {"url": NOBODY}
            body = {"job_id": job, **way}
            return f"{MAIN}/{run}/replicas/register", body
        case _:
            return f"{MAIN}/{run}/replicas/{job}/unregister", None


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gw") as folder:
        yield Path(folder)


@pytest.mark.parametrize(
    ("clients", "changes"), [(25, 40), pytest.param(50, 200, marks=pytest.mark.slow)]
)
async def test_some_serial_order_explains_all(
    home: Path, monkeypatch: pytest.MonkeyPatch, clients: int, changes: int
) -> None:
    histories: list[list[Call]] = [[] for _ in range(PAIRS)]

    async def open_(service_key: str, replica: Replica) -> Replica:
        for _ in range(len(histories[0]) % 30):
            await asyncio.sleep(0)
        return replica

    async with running(home) as gateway:
        monkeypatch.setattr(gateway.control.parts.registry._tunnels, "open", open_)
        async with asyncio.TaskGroup() as group:
            for seed in range(clients):
                group.create_task(client(gateway, seed, changes, histories))
        # The last word is that of the list: nothing else runs, so it must be the end of an order.
        _, listed = await gateway.get("/api/services/list")
        for number, history in enumerate(histories):
            assert sum(call.answer == OK for call in history) > len(history) / 20
            history.append(Call(1e9, 1e9, ("list",), repr(left(listed, number))))
            assert unexplained(history, Pair(), step_or_list) is None
        state = gateway.control.parts.state.services
        assert Store(home / "state").load().services == {
            key: service for key, service in state.items() if service.origin == "api"
        }
        snapshot = gateway.control.parts.publisher._snapshot
        assert snapshot is not None
        assert {t.service.key for t in snapshot.targets.values()} == set(state)


def step_or_list(now: Pair, op: tuple[str, ...], answer: str) -> Pair | None:
    if op == ("list",):
        return now if answer == repr((now.run, now.has_id, sorted(now.jobs))) else None
    return step(now, op, answer)


def left(listed: Any, number: int) -> tuple[str | None, bool, list[str]]:
    runs = {f"r{2 * number}", f"r{2 * number + 1}"}
    found = [entry for entry in listed["services"] if entry["run_name"] in runs]
    if not found:
        return None, False, []
    (entry,) = found
    jobs = sorted(replica["id"] for replica in entry["replicas"])
    return entry["run_name"], entry["id"] is not None, jobs


async def client(gateway: Gateway, seed: int, changes: int, histories: list[list[Call]]) -> None:
    chance, loop = random.Random(seed), asyncio.get_running_loop()  # noqa: S311
    for _ in range(changes):
        kind = chance.choice(("add", "add", "remove", "id", "replica", "replica", "out"))
        run, job = f"r{chance.randrange(2 * PAIRS)}", f"j{chance.randrange(3)}"
        op = (kind, run, job) if kind in ("replica", "out") else (kind, run)
        path, body = request(*op)
        began = loop.time()
        status, answer = await gateway.post(path, body)
        ended = loop.time()
        assert status in (200, 400), answer
        told = OK if status == 200 else answer["detail"]
        histories[int(run[1:]) // 2].append(Call(began, ended, op, told))


@pytest.mark.parametrize(
    ("fault", "calls"),
    [
        ("both get the domain", [(0, 2, ("add", "r0"), OK), (1, 3, ("add", "r1"), OK)]),
        (
            "a replica is lost",
            [
                (0, 1, ("add", "r0"), OK),
                (2, 5, ("replica", "r0", "a"), OK),
                (3, 4, ("replica", "r0", "b"), OK),
                (6, 7, ("list",), "('r0', False, ['a'])"),
            ],
        ),
        (
            "one is told of another that came later",
            [
                (0, 1, ("add", "r0"), "Service main/r0 is already registered"),
                (2, 3, ("add", "r0"), OK),
            ],
        ),
    ],
)
def test_what_no_order_explains_is_noticed(fault: str, calls: list[Any]) -> None:
    assert unexplained([Call(*call) for call in calls], Pair(), step_or_list) is not None, fault
    fine = Call(0, 1, ("list",), "(None, False, [])")
    assert unexplained([fine], Pair(), step_or_list) is None
