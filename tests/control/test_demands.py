"""Demand of services as control keeps it: windows, inheritance, and on to the next control."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from plant import service

from gatewayd.control import demand_store
from gatewayd.control.demand_store import DemandStore
from gatewayd.control.demands import Demands
from gatewayd.core.demand import Count, Window
from gatewayd.core.model import Service
from gatewayd.net.demand import NOBODY, DemandTable

LLAMA = service("llama")
OTHER = service("other")


class Clock:
    def __init__(self) -> None:
        self.now = 50_000.0

    def __call__(self) -> float:
        return self.now

    @property
    def ms(self) -> int:
        return int(self.now * 1000)


class Site:
    """A control's demands and one worker; `again` is the next control on the same state."""

    def __init__(self, home: Path, clock: Clock | None = None) -> None:
        self.home = home
        self.clock = clock or Clock()
        self.table = DemandTable.create(2)
        self.worker = DemandTable.attach(os.dup(self.table.fd), 0)
        self.demands = Demands(self.table, DemandStore(str(home)), self.clock)

    def again(self) -> Site:
        return Site(self.home, self.clock)

    async def close(self) -> None:
        self.demands.begin()
        await self.demands.aclose()

    def begin(self, of: Service = LLAMA, count: int = 1) -> int:
        for _ in range(count):
            self.worker.began(self.demands.column(of), self.clock.ms)
        return self.clock.ms

    def end(self, began: int, of: Service = LLAMA) -> None:
        column = self.demands.column(of)
        self.worker.ended(column, 1, began_ms=began, ended_ms=self.clock.ms)

    def short(self, of: Service = LLAMA, count: int = 1) -> None:
        for _ in range(count):
            self.end(self.begin(of), of)

    def passes(self, seconds: int) -> None:
        for _ in range(seconds):
            self.clock.now += 1
            self.demands._look()

    def requests(self, of: Service = LLAMA, count: Count = "running") -> tuple[int, ...]:
        windows = self.demands.windows([of], count)[of.key]
        assert list(windows) == [30, 60, 300]
        return tuple(window.requests for window in windows.values())


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    site.demands.keep([LLAMA, OTHER])
    yield site
    site.worker.close()
    site.table.close()


def test_a_service_that_nobody_asked_for_has_zeros(site: Site) -> None:
    zeros = dict.fromkeys((30, 60, 300), Window(0, 0.0))
    assert site.demands.windows([LLAMA], "running") == {"main/llama": zeros}
    site.demands.column(LLAMA)
    assert site.demands.windows([LLAMA], "running") == {"main/llama": zeros}


def test_requests_are_counted_at_once_and_leave_each_window_in_its_time(site: Site) -> None:
    site.short(count=3)
    assert site.requests() == (3, 3, 3)
    assert site.requests(OTHER) == (0, 0, 0)
    site.passes(29)
    assert site.requests() == (3, 3, 3)
    site.passes(2)
    assert site.requests() == (0, 3, 3)
    site.passes(30)
    assert site.requests() == (0, 0, 3)
    site.passes(240)
    assert site.requests() == (0, 0, 0)


def test_a_stall_of_control_loses_nothing(site: Site) -> None:
    site.passes(1)
    site.short(count=5)
    site.clock.now += 20
    assert site.requests() == (5, 5, 5)


def test_a_dead_worker_has_ended_what_it_ran(site: Site) -> None:
    site.begin(count=2)
    site.passes(10)
    assert site.requests(count="finished") == (0, 0, 0)
    site.demands.died(0)
    site.demands.died(2)  # the bridge has no row
    assert site.requests(count="finished") == (2, 2, 2)
    assert site.demands.windows([LLAMA], "finished")["main/llama"][30].request_time == 10.0
    assert site.requests() == (2, 2, 2)


def test_a_domain_that_is_registered_anew_inherits(site: Site) -> None:
    began = site.begin()
    site.short(count=2)
    column = site.demands.column(LLAMA)
    site.demands.keep([OTHER])
    site.passes(100)
    renamed = Service("team", "lama", LLAMA.domains)
    assert site.demands.column(renamed) == column
    site.demands.keep([OTHER, renamed])
    assert site.requests(renamed) == (1, 1, 3)
    site.end(began)
    assert site.requests(renamed, "finished") == (1, 1, 3)


def test_a_column_is_handed_on_when_nothing_of_it_is_left(site: Site) -> None:
    began = site.begin()
    column = site.demands.column(LLAMA)
    site.demands.keep([])
    site.passes(400)
    assert site.demands.column(OTHER) != column  # it still runs
    site.end(began)
    site.passes(299)
    assert site.demands.column(service("third")) not in (NOBODY, column)
    site.passes(2)
    fourth = service("fourth")
    assert site.demands.column(fourth) == column
    assert site.requests(fourth) == (0, 0, 0)
    site.short(fourth)
    assert site.requests(fourth) == (1, 1, 1)


def test_more_services_than_columns_are_served_all_the_same(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("gatewayd.control.demands.CAPACITY", 2)
    assert site.demands.column(LLAMA) == 1
    assert site.demands.column(OTHER) == NOBODY
    assert "other.example.com has no statistics" in caplog.text
    site.short(OTHER)
    assert site.requests(OTHER) == (0, 0, 0)


# --- from one control to the next


async def test_a_restart_goes_on_where_it_was(site: Site) -> None:
    site.short(count=2)
    site.passes(50)
    site.short(count=3)
    await site.close()
    assert (site.home / "demand.json").stat().st_mode & 0o777 == 0o600
    site.clock.now += 5
    after = site.again()
    after.demands.restore([])
    assert after.requests() == (3, 5, 5)
    after.short()
    assert after.requests() == (4, 6, 6)
    after.passes(40)
    assert after.requests() == (0, 4, 6)
    after.demands.keep([])  # its server has not put it back yet, or never will
    after.passes(300)
    assert after.requests() == (0, 0, 0)


async def test_what_ran_when_everything_ended_has_ended(site: Site) -> None:
    site.begin(count=2)
    await site.close()
    site.clock.now += 5
    after = site.again()
    after.demands.restore([])
    assert after.requests(count="finished") == (2, 2, 2)
    after.passes(61)
    assert after.requests() == (0, 0, 2)


async def test_workers_of_a_killed_control_are_counted_while_they_drain(
    site: Site,
) -> None:
    site.short(count=2)
    began = site.begin()
    site.passes(1)
    await site.close()  # the last time that it wrote
    site.short(count=4)  # and was killed
    after = site.again()
    after.demands.restore([os.getpid()])
    assert after.requests() == (7, 7, 7)
    after.passes(100)
    site.short(count=2)
    after.short()
    assert after.requests() == (4, 4, 10)
    site.end(began)
    still = site.begin()
    assert still
    after.passes(1)
    after.demands.predecessors_gone()
    assert after.requests(count="finished") == (5, 5, 11)
    after.demands.predecessors_gone()
    assert after.requests(count="finished") == (5, 5, 11)
    # And on to a third.
    await after.close()
    third = after.again()
    third.demands.restore([])
    assert third.requests(count="finished") == (5, 5, 11)


async def test_a_control_that_never_came_up_leaves_what_it_found(site: Site) -> None:
    site.short(count=3)
    await site.close()
    failed = site.again()
    failed.demands.restore([])
    await failed.demands.aclose()
    site.short(count=2)
    after = site.again()
    after.demands.restore([os.getpid()])
    assert after.requests() == (5, 5, 5)


HEAD = '{"version": 1, "boot": "BOOT", "table": 1, "services": '


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"version": 1}',
        HEAD + '{"a": []}}',
        HEAD + '{"a": [1, [0,0,0,0], [0,0,0,0], []]}}',
        HEAD + '{"a": [1, [0,0,0], [0], [[1,2]]]}}',
        HEAD + '{"a": [1, [0,0,0,"x"], [0,0,0,0], [[1,0,0]]]}}',
        HEAD + "[1]}",
        "[" * 100_000,
    ],
)
async def test_damage_costs_the_statistics_and_nothing_else(
    site: Site, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    (site.home / "demand.json").write_text(text.replace("BOOT", demand_store._boot()))
    site.demands.restore([])
    assert "statistics begin anew" in caplog.text
    site.short()
    assert site.requests() == (1, 1, 1)
    await site.close()


@pytest.mark.parametrize("change", [{"boot": "another"}, {"version": 2}])
async def test_what_another_boot_or_release_kept_says_nothing(
    site: Site, change: dict[str, object]
) -> None:
    site.short()
    await site.close()
    file = site.home / "demand.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    after = site.again()
    after.demands.restore([])
    assert after.requests() == (0, 0, 0)


def test_a_full_disk_is_said_once_and_got_over(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    store = DemandStore(str(site.home / "missing"))
    store.save(1, {})
    store.save(1, {})
    assert caplog.text.count("cannot write") == 1
    (site.home / "missing").mkdir()
    store.save(1, {})
    assert store.load(site.clock.ms) == (1, {})


def test_statistics_of_500_services_are_quick(site: Site) -> None:
    services = [service(f"s{i}") for i in range(500)]
    site.demands.keep(services)
    for _ in range(60):
        for of in services:
            site.short(of)
        site.passes(1)
    began = time.perf_counter()
    windows = site.demands.windows(services, "running")
    took = time.perf_counter() - began
    assert {w[300].requests for w in windows.values()} == {60}
    assert took < 0.1  # 20 ms is the promise, on a machine that does nothing else


async def test_what_nobody_has_counted_in_is_not_looked_at(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    look = site.demands._look

    def counted() -> None:
        nonlocal looks
        looks += 1
        look()

    monkeypatch.setattr(site.demands, "_look", counted)
    site.demands.column(LLAMA)
    site.demands.begin()
    for _ in range(30):
        site.clock.now += 1
        site.demands.beat()
    assert looks == 1
    site.short()
    for _ in range(5):
        site.clock.now += 1
        site.demands.beat()
    assert looks == 2
    assert site.requests() == (1, 1, 1)
    site.clock.now += 40
    site.demands.beat()
    assert site.requests() == (0, 1, 1)
    for _ in range(60):  # what is old is forgotten at some time
        site.clock.now += 1
        site.demands.beat()
    assert looks == 3
