"""`gatewayd install --dstack` below another root: what it writes, keeps, and puts back."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from gatewayd.cli import main
from gatewayd.config.load import load_config
from gatewayd.core.model import DstackAuth

UNIT = "etc/systemd/system/gatewayd.service"
DROP_IN = "etc/systemd/system/dstack.gateway.service.d/gatewayd.conf"
DSTACK_UNIT = "etc/systemd/system/dstack.gateway.service"
CONFIG = "etc/gatewayd/dstack.yaml"
VERSION = "home/ubuntu/dstack/version"


def install(root: Path, *more: str) -> int:
    return main(["install", "--dstack", "--root", str(root), *more])


def files(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): path.read_text()
        for path in root.rglob("*")
        if path.is_file()
    }


def an_update(root: Path, build: str) -> None:
    """What the updater of a dstack server leaves: the other venv, its unit, its script."""
    folder = root / "home/ubuntu/dstack"
    other = "green" if (folder / "version").read_text().strip() == "blue" else "blue"
    (folder / other / "bin").mkdir(parents=True, exist_ok=True)
    (folder / other / "bin/pip").write_text(build)
    (root / DSTACK_UNIT).write_text("[Service]\nExecStart=/bin/sh /home/ubuntu/dstack/start.sh\n")
    (folder / "start.sh").write_text("#!/bin/sh\n")
    (folder / "version").write_text(f"{other}\n")


@pytest.fixture
def dstack(tmp_path: Path) -> Path:
    """The machine of a dstack gateway."""
    (tmp_path / "home/ubuntu/dstack").mkdir(parents=True)
    (tmp_path / "etc/systemd/system").mkdir(parents=True)
    (tmp_path / VERSION).write_text("green\n")
    an_update(tmp_path, "0.22.5")
    return tmp_path


def test_on_a_gateways_machine_nothing_of_dstack_is_touched(dstack: Path) -> None:
    before = files(dstack)
    assert install(dstack) == 0
    after = files(dstack)
    assert before.items() <= after.items()
    assert after.keys() - before.keys() == {UNIT, DROP_IN, CONFIG}


def test_its_file_is_a_good_one(dstack: Path) -> None:
    install(dstack)
    config = load_config(str(dstack / CONFIG), {})
    assert [str(at) for at in (*config.listen.http, *config.listen.https)] == [
        "0.0.0.0:80",
        "0.0.0.0:443",
    ]
    assert str(config.listen.admin) == "127.0.0.1:8000"
    assert isinstance(config.auth, DstackAuth)
    assert config.import_state == "/home/ubuntu/dstack/state-v2.json"


def test_dstacks_unit_stands_for_gatewayds_and_starts_nothing(dstack: Path) -> None:
    install(dstack)
    drop_in = (dstack / DROP_IN).read_text()
    # An empty one takes away the unit's own.
    assert re.findall(r"^ExecStart=(.*)$", drop_in, re.M) == ["", "/bin/true"]
    assert {"Type=oneshot", "Restart=no", "Wants=gatewayd.service"} <= set(drop_in.split("\n"))


def test_an_update_of_dstack_changes_nothing_of_ours(dstack: Path) -> None:
    install(dstack)
    ours = {name: text for name, text in files(dstack).items() if name in (UNIT, DROP_IN, CONFIG)}
    an_update(dstack, "0.23.0")
    assert ours.items() <= files(dstack).items()
    updated = files(dstack)
    assert install(dstack) == 0
    assert files(dstack) == updated


def test_twice_is_once(dstack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(dstack)
    once = files(dstack)
    capsys.readouterr()
    assert install(dstack) == 0
    assert files(dstack) == once
    assert "written" not in capsys.readouterr().out


def test_on_an_empty_machine_the_updater_finds_what_it_looks_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert install(tmp_path) == 0
    assert (tmp_path / VERSION).read_text() == "blue\n"
    assert (tmp_path / DSTACK_UNIT).exists()
    out = capsys.readouterr().out
    assert all(f"python3 -m venv /home/ubuntu/dstack/{v}" in out for v in ("blue", "green"))
    assert install(tmp_path, "--uninstall") == 0
    assert set(files(tmp_path)) == {CONFIG, VERSION}


def test_somebody_elses_file_is_kept_and_put_back(dstack: Path) -> None:
    (dstack / UNIT).write_text("# mine\n")
    before = files(dstack)
    install(dstack)
    assert (dstack / f"{UNIT}.before-gatewayd").read_text() == "# mine\n"
    assert install(dstack, "--uninstall") == 0
    assert files(dstack) == before | {CONFIG: (dstack / CONFIG).read_text()}


def test_a_configuration_that_is_there_stays(dstack: Path) -> None:
    (dstack / CONFIG).parent.mkdir(parents=True)
    (dstack / CONFIG).write_text("domain: mine.example\n")
    install(dstack)
    assert (dstack / CONFIG).read_text() == "domain: mine.example\n"


def test_uninstalling_leaves_what_was_changed_since(dstack: Path) -> None:
    install(dstack)
    (dstack / UNIT).write_text("# mine\n")
    install(dstack, "--uninstall")
    assert (dstack / UNIT).read_text() == "# mine\n"
    assert not (dstack / DROP_IN).exists()


@pytest.mark.parametrize("more", [(), ("--uninstall",)])
def test_a_dry_run_only_tells(
    dstack: Path, more: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    if more:
        install(dstack)
    before = files(dstack)
    capsys.readouterr()
    assert install(dstack, "--dry-run", *more) == 0
    assert files(dstack) == before
    out = capsys.readouterr().out
    assert "$ systemctl daemon-reload" in out
    assert ("removed" if more else "written") in out


def test_without_root_the_system_is_not_changed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main(["install", "--dstack"]) == 2
    assert "run it as root" in capsys.readouterr().err
