"""The state of another gateway becomes ours, in both of its forms."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from gateway import FILE, running

from gatewayd.cli import main
from gatewayd.config.load import load_config
from gatewayd.config.model import Config
from gatewayd.control.inherit import inherit
from gatewayd.control.saved import Saved
from gatewayd.control.state import AcmeSettings
from gatewayd.control.store import Store
from gatewayd.core.entrypoint import Entrypoint, OpenAiFormat, TgiFormat
from gatewayd.core.model import RateLimit, SshHop
from gatewayd.core.secret import Secret

GATEWAY = """
domain: example.com
auth: {{type: http, url: "http://127.0.0.1:9/check"}}
listen: {{http: "127.0.0.1:0", admin: "unix:{home}/admin.sock"}}
state_dir: {home}/state
"""
REPLICA = {
    "id": "job-1",
    "app_port": 8000,
    "ssh_destination": "root@localhost",
    "ssh_port": 10022,
    "ssh_proxy": {"hostname": "10.0.0.9", "username": "ubuntu", "port": 22},
    "ssh_proxy_private_key": None,
    "ssh_head_proxy": None,
    "ssh_head_proxy_private_key": None,
    "internal_ip": "10.0.0.9",
}
NEWER: dict[str, Any] = {
    "services": {
        "Main": {
            "run-1": {
                "id": "9a" * 16,
                "project_name": "Main",
                "run_name": "run-1",
                "domain": "run-1.example.com",
                "https": False,
                "rate_limits": [
                    {
                        "prefix": "/v1/",
                        "key": {"type": "header", "header": "X-Key"},
                        "rps": 2.0,
                        "burst": 3,
                    }
                ],
                "auth": True,
                "client_max_body_size": 5000,
                "strip_prefix": True,
                "replicas": [REPLICA],
                "has_router_replica": False,
                "cors_enabled": True,
                "read_timeout": 60,
            },
            "run-2": {
                "project_name": "Main",
                "run_name": "run-2",
                "domain": "run-2.example.com",
                "https": False,
                "rate_limits": [],
                "auth": False,
                "client_max_body_size": 5000,
                "replicas": [],
            },
        }
    },
    "models": {
        "Main": {
            "m": {
                "project_name": "Main",
                "name": "m",
                "created_at": "2026-01-02T03:04:05+00:00",
                "run_name": "run-1",
                "format_spec": {"format": "openai", "prefix": "/v2"},
            }
        }
    },
    "entrypoints": {
        "Main": {"project_name": "Main", "domain": "gateway.example.com", "https": False}
    },
    "projects": {"Main": {"name": "Main", "ssh_private_key": "KEY"}},
    "config": {"acme_settings": {"server": "https://ca.example/", "eab_kid": None}},
}
OLDER: dict[str, Any] = {
    "store": {
        "services": {
            "s1": {
                "id": "s1",
                "domain": "run-1.example.com",
                "auth": False,
                "options": {
                    "openai": {
                        "model": {
                            "type": "chat",
                            "name": "m",
                            "format": "tgi",
                            "chat_template": "T",
                            "eos_token": "</s>",
                        }
                    }
                },
                "replicas": [
                    {
                        "id": "job-1",
                        "app_port": 80,
                        "ssh_host": "root@localhost",
                        "ssh_port": 10022,
                        "ssh_jump_host": "ubuntu@10.0.0.9",
                        "ssh_jump_port": 22,
                        "ssh_tunnel": {"temp_dir": "/run/x"},
                    }
                ],
            },
            "s2": {
                "id": "s2",
                "domain": "run-2.example.com",
                "https": False,
                "auth": False,
                "client_max_body_size": 5000,
                "options": {
                    "openai": {
                        "model": {"type": "chat", "name": "lost", "format": "openai", "prefix": "/"}
                    }
                },
                "replicas": [],
            },
            "s3": {"id": "s3", "domain": "run-3.example.com", "auth": False},
        },
        "projects": {"Main": ["s1", "s2"], "keyless": []},
        "entrypoints": {"gateway.example.com": ["Main", "openai"]},
        "nginx": {
            "configs": {
                "x": {"type": "entrypoint", "domain": "gateway.example.com", "https": False},
                "y": {"type": "service", "domain": "run-1.example.com"},
            },
            "acme_settings": {"server": None, "eab_kid": None, "eab_hmac_key": None},
        },
    },
    "openai": {"index": {"Main": {"chat": {"m": {"created": 1734905496}}}}},
}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    path = tmp_path / "gateway.yaml"
    path.write_text(GATEWAY.format(home=tmp_path))
    return load_config(str(path), {})


def write(folder: Path, state: object) -> Path:
    path = folder / "old.json"
    path.write_text(state if isinstance(state, str) else json.dumps(state))
    return path


def test_todays_form(tmp_path: Path, config: Config) -> None:
    saved, told = inherit(write(tmp_path, NEWER), tmp_path, config)
    assert told == []
    first, second = saved.services["main/run-1"], saved.services["main/run-2"]
    assert (first.domains, first.auth, first.id) == (("run-1.example.com",), True, "9a" * 16)
    assert first.rate_limits == (RateLimit("/v1/", 2.0, 3, "x-key"),)
    assert (first.timeouts.idle, first.client_max_body_size) == (60.0, 5000)
    assert (first.strip_prefix, first.origin) == (None, "api")
    assert first.cors is not None
    (replica,) = first.replicas
    assert replica.tunnel is not None
    assert replica.tunnel.hops == (
        SshHop("ubuntu@10.0.0.9", 22, Secret("KEY")),
        SshHop("root@localhost", 10022, Secret("KEY")),
    )
    assert (second.id, second.cors, second.model) == (None, None, None)
    model = saved.models["main", "m"]
    assert (model.service, model.created) == ("run-1", 1767323045)
    assert model.format == OpenAiFormat("/v2")
    assert saved.entrypoints == {"main": Entrypoint("main", "gateway.example.com")}
    assert saved.keys == {"main": Secret("KEY")}
    assert saved.acme == AcmeSettings("https://ca.example/")


def test_the_older_form(tmp_path: Path, config: Config) -> None:
    (tmp_path / "Main").write_text("KEY")
    saved, told = inherit(write(tmp_path, OLDER), tmp_path, config)
    first, second = saved.services["main/run-1"], saved.services["main/run-2"]
    assert (first.https, first.client_max_body_size, first.id) == (True, 1024 * 1024, None)
    assert (second.https, second.client_max_body_size, second.model) == (False, 5000, None)
    (replica,) = first.replicas
    assert replica.tunnel is not None
    assert [hop.destination for hop in replica.tunnel.hops] == ["ubuntu@10.0.0.9", "root@localhost"]
    assert saved.models["main", "m"].format == TgiFormat("T", "</s>")
    assert saved.models["main", "m"].created == 1734905496
    assert saved.entrypoints == {"main": Entrypoint("main", "gateway.example.com")}
    assert saved.keys == {"main": Secret("KEY")}
    assert saved.acme is None
    left_out, keyless = told
    assert left_out == "service run-3.example.com is left out: it belongs to no project"
    assert "the ssh key of project keyless cannot be read" in keyless


def test_what_cannot_be_taken_over_is_said_and_left_out(tmp_path: Path, config: Config) -> None:
    state = json.loads(json.dumps(NEWER))
    services = state["services"]["Main"]
    services["run-2"]["domain"] = "run-1.example.com"
    services["run-3"] = services["run-2"] | {"run_name": "run-3", "domain": "a b"}
    services["run-1"]["replicas"].append(REPLICA | {"id": "job-2", "ssh_port": "x"})
    state["entrypoints"]["Main"]["domain"] = "run-1.example.com"
    saved, told = inherit(write(tmp_path, state), tmp_path, config)
    assert list(saved.services) == ["main/run-1"]
    assert [line.partition(" is left out")[0] for line in told] == [
        "replica job-2 of main/run-1",
        "service main/run-2",
        "service main/run-3",
        "entrypoint of main",
    ]


@pytest.mark.parametrize(
    "state",
    ["", "{", "[" * 100_000, "[]", "{}", '{"services": []}', '{"store": {"services": [1]}}', "5"],
)
def test_what_is_no_such_state(
    tmp_path: Path, config: Config, capsys: pytest.CaptureFixture[str], state: str
) -> None:
    path = write(tmp_path, state)
    assert main(["import", str(path), "-c", config.source]) == 1
    assert str(path) in capsys.readouterr().err
    assert not (tmp_path / "state" / "registry.json").exists()


def test_the_command(tmp_path: Path, config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["import", str(write(tmp_path, NEWER)), "-c", config.source]
    assert main(command) == 0
    assert "imported 2 services, 1 replicas" in capsys.readouterr().out
    assert list(Store(tmp_path / "state").load().services) == ["main/run-1", "main/run-2"]
    assert os.stat(tmp_path / "state" / "registry.json").st_mode & 0o777 == 0o600
    assert main(command) == 1  # never over what is there
    assert "has a registered state already" in capsys.readouterr().err
    assert main([*command[:1], str(tmp_path / "none"), *command[2:]]) == 1
    assert main([*command[:3], str(tmp_path / "none.yaml")]) == 2


async def test_at_the_first_start(tmp_path: Path) -> None:
    old = write(
        tmp_path, NEWER | {"services": {"main": {"run-2": NEWER["services"]["Main"]["run-2"]}}}
    )
    text = FILE + f"import_state: {old}\n"
    async with running(tmp_path, text) as gateway:
        assert "main/run-2" in gateway.control.parts.state.services
        path = "/api/registry/main/services/run-2/unregister"
        assert await gateway.post(path) == (200, {"status": "ok"})
    async with running(tmp_path, text) as gateway:  # once
        assert "main/run-2" not in gateway.control.parts.state.services


async def test_a_start_survives_what_it_cannot_import(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = FILE + f"import_state: {write(tmp_path, '{')}\n"
    async with running(tmp_path, text) as gateway:
        assert list(gateway.control.parts.state.services) == ["main/llama"]
    assert "nothing is imported" in caplog.text
    (tmp_path / "old.json").unlink()
    async with running(tmp_path, text):
        pass
    assert Store(tmp_path / "state").load() == Saved()
