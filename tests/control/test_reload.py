"""What a reload makes of the running services, the old file and the new one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from plant import replica, service

from gatewayd.config.load import default_config
from gatewayd.config.model import Config
from gatewayd.control.conflicts import RefusedError
from gatewayd.control.reload import merged
from gatewayd.core.model import Replica, Service, UnixAddress


def config(*services: Service) -> Config:
    return replace(default_config({}), services=services)


def reloaded(running: list[Service], old: list[Service], new: list[Service]) -> dict[str, Service]:
    current = {s.key: s for s in running}
    return merged(current, config(*old), config(*new))


def ids(services: dict[str, Service], key: str = "main/llama") -> list[str]:
    return [r.id for r in services[key].replicas]


def test_the_file_is_taken_as_it_is_when_nothing_else_happened() -> None:
    old = [service("llama", "a", "b"), service("gone", "x")]
    new = [service("llama", "b", "c", model="m"), service("new")]
    result = reloaded(old, old, new)
    assert result == {"main/llama": new[0], "main/new": new[1]}


def test_services_and_replicas_of_the_api_stay() -> None:
    old, new = service("llama", "a"), service("llama", "b")
    api = replica("x", origin="api")
    running = replace(old, replicas=(*old.replicas, api))
    other = service("other", "y", origin="api")
    result = reloaded([running, other], [old], [new])
    assert result["main/other"] is other
    assert ids(result) == ["x", "b"]


def test_a_replica_that_was_taken_out_stays_out() -> None:
    old = service("llama", "a", "b")
    running = service("llama", "b")
    assert ids(reloaded([running], [old], [service("llama", "a", "b", "c")])) == ["b", "c"]


def test_a_replica_at_another_address_is_another_one() -> None:
    old = service("llama", "a")
    moved = replace(old, replicas=(Replica("a", UnixAddress("/elsewhere.sock")),))
    assert reloaded([old], [old], [moved])["main/llama"].replicas == moved.replicas


def test_a_draining_replica_goes_on_draining() -> None:
    old = service("llama", "a", "b")
    running = replace(old, replicas=(replica("a", draining=True), old.replicas[1]))
    new = service("llama", "a", "b", model="m")
    assert reloaded([running], [old], [new])["main/llama"].replicas[0].draining


def test_a_name_of_the_api_is_not_taken_over() -> None:
    with pytest.raises(RefusedError, match="main/llama is registered already"):
        reloaded([service("llama", origin="api")], [], [service("llama", "a")])


def test_a_service_renamed_is_one_gone_and_one_new() -> None:
    old = service("llama", "a")
    assert set(reloaded([old], [old], [service("alpaca", "a")])) == {"main/alpaca"}
