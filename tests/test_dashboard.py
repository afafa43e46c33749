"""The Grafana dashboard and the compose file: they name what exists, and Prometheus reads it."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from exported import exported

ROOT = Path(__file__).parent.parent
COMPOSE = ROOT / "configs/compose"
DASHBOARD = json.loads((ROOT / "configs/grafana/gatewayd.json").read_text())

# What operators rely on. A histogram also has _bucket, _sum and _count.
COUNTERS_AND_GAUGES = {
    "gatewayd_requests_total": {"service", "code"},
    "gatewayd_requests_in_flight": {"service", "replica"},
    "gatewayd_request_bytes_total": {"service"},
    "gatewayd_response_bytes_total": {"service"},
    "gatewayd_rejections_total": {"service", "reason"},
    "gatewayd_upstream_errors_total": {"service", "replica", "kind"},
    "gatewayd_retries_total": {"service"},
    "gatewayd_replicas": {"service", "state"},
    "gatewayd_router_up": {"service"},
    "gatewayd_router_restarts_total": {"service"},
    "gatewayd_router_fallbacks_total": {"service"},
    "gatewayd_requests_by_way_total": {"service", "way"},
    "gatewayd_steering_total": {"service", "outcome"},
    "gatewayd_connections": set(),
    "gatewayd_access_log_lines_dropped_total": set(),
    "gatewayd_workers": set(),
    "gatewayd_worker_restarts_total": set(),
    "gatewayd_config_reloads_total": {"result"},
    "gatewayd_build_info": {"version"},
}
HISTOGRAMS = ("gatewayd_request_duration_seconds", "gatewayd_time_to_first_byte_seconds")
LABELS = {
    **COUNTERS_AND_GAUGES,
    **{f"{name}_bucket": {"service", "le"} for name in HISTOGRAMS},
    **{f"{name}_{part}": {"service"} for name in HISTOGRAMS for part in ("sum", "count")},
}


def panels() -> Iterator[dict[str, Any]]:
    for panel in DASHBOARD["panels"]:
        yield panel
        yield from panel.get("panels", [])


def expressions() -> list[tuple[str, str]]:
    return [
        (f"{panel['title']} {target['refId']}", target["expr"])
        for panel in panels()
        for target in panel.get("targets", [])
    ]


def test_every_metric_is_ours_and_every_one_is_shown() -> None:
    used = {name for _, expr in expressions() for name in re.findall(r"gatewayd_\w+", expr)}
    assert used <= set(LABELS)
    assert set(COUNTERS_AND_GAUGES) <= used
    assert {f"{name}_bucket" for name in HISTOGRAMS} <= used


async def test_the_gateway_exports_them_with_these_labels() -> None:
    shown = await exported()
    assert {name: shown.get(name) for name in LABELS} == LABELS


@pytest.mark.parametrize(
    ("title", "expr"), expressions(), ids=[title for title, _ in expressions()]
)
def test_labels_exist(title: str, expr: str) -> None:
    of_prometheus = {"instance", "job"}
    for name, matchers in re.findall(r"(gatewayd_\w+)\{([^}]*)\}", expr):
        assert set(re.findall(r"(\w+)\s*=~?", matchers)) <= LABELS[name] | of_prometheus
    names = re.findall(r"gatewayd_\w+", expr)
    for grouping in re.findall(r"by \(([^)]*)\)", expr):
        known = set().union(*(LABELS[name] for name in names)) | of_prometheus
        assert set(re.split(r",\s*", grouping)) <= known


def test_panels_are_placed_and_told_apart() -> None:
    ids = [panel["id"] for panel in panels()]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells
    for panel in panels():
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


@pytest.mark.needs("promtool")
def test_prometheus_reads_every_expression(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": expr.replace("$__rate_interval", "1m")}
        for number, (_, expr) in enumerate(expressions())
    ]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run(
        ["promtool", "check", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"{len(rules)} rules found" in done.stdout


@pytest.mark.needs("promtool")
def test_prometheus_reads_its_configuration() -> None:
    file = COMPOSE / "prometheus.yml"
    done = subprocess.run(
        ["promtool", "check", "config", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# --- the compose file ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    compose = yaml.safe_load((COMPOSE / "docker-compose.yml").read_text())
    declared = set(compose["volumes"])
    for name, service in compose["services"].items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in declared or (COMPOSE / source).exists(), f"{name}: {source}"
    return compose["services"]


def target_of(service: dict[str, Any], source: str) -> str:
    (target,) = (
        volume.split(":")[1] for volume in service["volumes"] if volume.split(":")[0] == source
    )
    return target


def test_the_gateway_finds_the_replicas(services: dict[str, Any]) -> None:
    gateway = yaml.safe_load((COMPOSE / "gateway.yaml").read_text())
    folder = target_of(services["gatewayd"], "replicas")
    sockets = {f"unix:{folder}/{name}.sock" for name in ("a", "b")}
    assert set(gateway["services"][0]["replicas"]) == sockets
    for name in ("a", "b"):
        replica = services[f"replica-{name}"]
        assert target_of(replica, "replicas") == folder
        assert f"{folder}/{name}.sock" in replica["command"]
    assert target_of(services["gatewayd"], "./gateway.yaml") in services["gatewayd"]["command"]
    assert target_of(services["gatewayd"], "state") == gateway["state_dir"]
    for name in ("gatewayd", "replica-a", "replica-b"):
        assert services[name]["read_only"] is True
        assert services[name]["cap_drop"] == ["ALL"]


def test_prometheus_and_grafana_find_the_gateway(services: dict[str, Any]) -> None:
    gateway = yaml.safe_load((COMPOSE / "gateway.yaml").read_text())
    prometheus = yaml.safe_load((COMPOSE / "prometheus.yml").read_text())
    (job,) = prometheus["scrape_configs"]
    port = gateway["listen"]["metrics"].rpartition(":")[2]
    assert job["static_configs"] == [{"targets": [f"gatewayd:{port}"]}]

    datasource = yaml.safe_load((COMPOSE / "grafana/datasources/prometheus.yml").read_text())
    assert datasource["datasources"][0]["url"] == "http://prometheus:9090"
    provider = yaml.safe_load((COMPOSE / "grafana/dashboards/gatewayd.yml").read_text())
    folder = provider["providers"][0]["options"]["path"]
    assert target_of(services["grafana"], "../grafana") == folder
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{folder}/gatewayd.json"
