"""What is shipped around the code: the lock, the commands, the unit, the image's recipe."""

from __future__ import annotations

import configparser
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def locked() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pins}


@pytest.mark.parametrize(
    "requirement",
    [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]],
)
def test_the_lock_satisfies(requirement: str) -> None:
    wanted = Requirement(requirement)
    assert wanted.specifier.contains(locked()[canonicalize_name(wanted.name)])


def test_every_folder_is_a_package() -> None:
    """One that is not would run from the work tree and be missing from the wheel."""
    folders = {path.parent for path in (ROOT / "gatewayd").rglob("*.py")}
    assert sorted(f for f in folders if not (f / "__init__.py").exists()) == []


def test_the_licence_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["license"] == "Apache-2.0"


TARGETS = ["run", "test", "check", "bench", "e2e", "image", "lock", "clean", "help"]


@pytest.mark.parametrize("target", TARGETS)
def test_make_knows(target: str) -> None:
    done = subprocess.run(
        ["make", "-n", "GATEWAYD_SGLANG_DIR=x", target],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_make_e2e_says_what_it_needs() -> None:
    text = (ROOT / "Makefile").read_text()
    assert "make e2e GATEWAYD_SGLANG_DIR=" in text
    assert (ROOT / "docs/real-sglang.md").exists()


@pytest.mark.parametrize("script", [".ci/run", "scripts/image.sh"])
def test_scripts_parse(script: str) -> None:
    assert (ROOT / script).stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(ROOT / script)], check=True)


def unit() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((ROOT / "configs/systemd/gatewayd.service").read_text())
    return parser["Service"]


def test_the_unit_stops_later_than_the_drain() -> None:
    service = unit()
    drain = 30  # the default of drain_timeout
    assert int(service["TimeoutStopSec"]) > drain + 10
    assert service["KillMode"] == "mixed"  # the control process alone hears SIGTERM, and drains
    assert service["KillSignal"] == "SIGTERM"
    assert service["ExecReload"].endswith("kill -HUP $MAINPID")
    assert service["RestartPreventExitStatus"] == "2"
    assert service["LimitNOFILE"] == "65535"


@pytest.mark.parametrize(
    "key", ["DynamicUser", "NoNewPrivileges", "ProtectHome", "PrivateTmp", "RestrictNamespaces"]
)
def test_the_unit_is_confined(key: str) -> None:
    assert unit()[key] == "yes"


@pytest.mark.needs("systemd-analyze")
def test_systemd_reads_the_unit(tmp_path: Path) -> None:
    text = (ROOT / "configs/systemd/gatewayd.service").read_text()
    file = tmp_path / "gatewayd.service"
    file.write_text(text.replace("/opt/gatewayd/bin/gatewayd", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(file)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_image_runs_as_nobody_under_an_init() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert re.search(r"^ARG BASE=", text, re.MULTILINE)
    last_stage = text[text.rindex("\nFROM ") :]
    assert re.search(r"^USER (?!0|root)\S+$", last_stage, re.MULTILINE)
    assert 'ENTRYPOINT ["tini", "--", "gatewayd"]' in last_stage
    assert "HEALTHCHECK" in last_stage
