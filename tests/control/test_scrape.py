"""A scrape of hundreds of services leaves control to others."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from gateway import Gateway, running
from plant import service
from prometheus_client.parser import text_string_to_metric_families

from gatewayd.control.exposition import FAMILIES
from gatewayd.control.metrics import Exposition
from gatewayd.control.sample import Sample, ServiceSample
from gatewayd.core.messages import ServiceTotals

SERVICES, REPLICAS = 500, 4


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    """With hundreds of services, put there and not registered, which would take seconds."""
    with tempfile.TemporaryDirectory(prefix="gw") as folder:
        async with running(Path(folder)) as gateway:
            parts = gateway.control.parts
            for i in range(SERVICES):
                one = service(f"s{i}", *(f"r{j}" for j in range(REPLICAS)))
                parts.state.services[one.key] = one
            parts.telemetry.keep(parts.state.services)
            yield gateway


async def test_it_takes_little_of_control(gateway: Gateway) -> None:
    """In time of the processor, which others on the machine do not take away: about 20 ms with the
    client's own, where it was 200."""
    took = []
    for _ in range(3):
        began = time.process_time()
        status, text = await gateway.get("/metrics")
        took.append(time.process_time() - began)
        assert status == 200
        assert text.count("gatewayd_requests_in_flight{") == 1 + SERVICES * REPLICAS
    assert min(took) < 0.1


async def test_status_and_registrations_are_answered_meanwhile(gateway: Gateway) -> None:
    scrape = asyncio.create_task(gateway.get("/metrics"))
    answered = 0
    while not scrape.done():
        assert await gateway.get("/healthz") == (200, "ok\n")
        answered += not scrape.done()
    assert answered
    body = {"run_name": "new", "domain": "new.example.com", "auth": False, "https": False}
    (scraped, _), (registered, _) = await asyncio.gather(
        gateway.get("/metrics"), gateway.post("/api/registry/main/services/register", body)
    )
    assert (scraped, registered) == (200, 200)


async def test_others_run_after_every_millisecond_of_it() -> None:
    turns, seen = 0, []

    def slow() -> Iterator[ServiceSample]:
        for i in range(20):
            seen.append(turns)
            enough = time.perf_counter() + 0.002
            while time.perf_counter() < enough:
                pass
            yield ServiceSample(f"s{i}", ServiceTotals())

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    running = asyncio.create_task(other())
    sample = Sample(services=slow(), workers=1, worker_restarts=0, connections=0)
    await Exposition(lambda: sample).render()
    running.cancel()
    assert len(set(seen)) == 20, "two services were rendered without a turn between"


async def test_others_run_while_status_is_made(gateway: Gateway) -> None:
    """In time of the processor: 1 ms at a time, where it was 11 at once."""
    longest, last = 0.0, time.thread_time()

    async def other() -> None:
        nonlocal longest, last
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            longest, last = max(longest, now - last), now

    running = asyncio.create_task(other())
    turns = []
    for _ in range(5):
        await asyncio.sleep(0)
        longest = 0.0
        text = await gateway.control.parts.status.as_json()
        await asyncio.sleep(0)
        turns.append(longest)
        assert len(json.loads(text)["services"]) == 1 + SERVICES
    running.cancel()
    assert min(turns) < 0.005, "the loop stood still for too long"


async def test_a_service_that_goes_while_status_is_made(gateway: Gateway) -> None:
    services = gateway.control.parts.state.services
    asked = asyncio.create_task(gateway.get("/api/status"))
    while len(services) > 1:
        await asyncio.sleep(0)
        services.popitem()
    status, told = await asked
    assert status == 200
    assert told["services"][0]["name"] == "llama"


async def test_services_that_come_and_go_meanwhile(gateway: Gateway) -> None:
    services = gateway.control.parts.state.services
    samples = iter(gateway.control.parts.status.sample().services)
    seen = [next(samples).name for _ in range(10)]
    assert seen == ["", "llama", *(f"s{i}" for i in range(8))]
    again = services.pop("main/s0")
    services.pop("main/s8")
    services["main/late"] = service("late")
    services["main/s0"] = again
    seen += [sample.name for sample in samples]
    assert len(seen) == len(set(seen))
    assert set(seen) == {"", "llama", *(f"s{i}" for i in range(SERVICES) if i != 8)}


async def test_a_reader_of_prometheus_reads_it(gateway: Gateway) -> None:
    """All lines of a name stand together, below its help and type."""
    _, text = await gateway.get("/metrics")
    own = [each for each in text_string_to_metric_families(text) if "gatewayd" in each.name]
    assert [family.name for family in own] == [
        family.name.removesuffix("_total") for family in FAMILIES
    ]
    assert {family.type for family in own} == {"counter", "gauge", "histogram"}
    assert all(family.documentation for family in own)
    heads = [line for line in text.splitlines() if line.startswith("# TYPE gatewayd_")]
    assert len(heads) == len(FAMILIES)


async def test_labels_with_quotes_are_read_as_they_are() -> None:
    name = 'a "quoted" \\ back\nslash'
    sample = Sample(
        services=[
            ServiceSample(name, ServiceTotals(upstream_errors={(name, "reset"): 1}), [(name, 2)])
        ],
        workers=1,
        worker_restarts=0,
        connections=0,
        certificates={name: 3.0},
    )
    text = (await Exposition(lambda: sample).render()).decode()
    labels = {
        value
        for family in text_string_to_metric_families(text)
        if family.name in ("gatewayd_upstream_errors", "gatewayd_requests_in_flight")
        or family.name.startswith("gatewayd_certificate")
        for one in family.samples
        for key, value in one.labels.items()
        if key != "kind"
    }
    assert labels == {name}
