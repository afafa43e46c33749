"""The state directory has one owner, and what a dead control left running is ended gently."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gatewayd.control.survivors import Known, StateDir, StateDirError, dismiss, known

OBEDIENT = "import sys; print(flush=True); sys.stdin.read()"
STUBBORN = (
    "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "print(flush=True); sys.stdin.read()"
)


@pytest.fixture
def start() -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(code: str) -> subprocess.Popen[bytes]:
        popen = subprocess.Popen(
            (sys.executable, "-c", code), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        started.append(popen)
        assert popen.stdout is not None
        popen.stdout.readline()
        return popen

    yield start
    for popen in started:
        popen.kill()
        popen.communicate()


def test_the_directory_is_private(tmp_path: Path) -> None:
    state = StateDir(str(tmp_path / "deep" / "state"))
    state.acquire()
    assert stat.S_IMODE((tmp_path / "deep" / "state").stat().st_mode) == 0o700
    state.release()


def test_a_second_owner_is_told_who_the_first_is(tmp_path: Path) -> None:
    first, second = StateDir(str(tmp_path)), StateDir(str(tmp_path))
    first.acquire()
    with pytest.raises(StateDirError, match=rf"in use by another gatewayd \(pid {os.getpid()}\)"):
        second.acquire()
    first.release()
    second.acquire()
    second.release()


def test_a_full_disk_keeps_nobody_from_starting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "lock").symlink_to("/dev/full")
    first, second = StateDir(str(tmp_path)), StateDir(str(tmp_path))
    first.acquire()
    assert f"cannot write {tmp_path}/lock: No space left on device" in caplog.text
    with pytest.raises(StateDirError, match="in use by another gatewayd"):
        second.acquire()
    first.release()


def test_a_shorter_pid_takes_the_place_of_a_longer_one(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("1234567890\n")
    state_dir = StateDir(str(tmp_path))
    state_dir.acquire()
    assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
    state_dir.release()


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateDirError, match="Not a directory"):
        StateDir(str(tmp_path / "file" / "state")).acquire()


def test_only_the_living_are_survivors(
    tmp_path: Path, start: Callable[[str], subprocess.Popen[bytes]]
) -> None:
    state = StateDir(str(tmp_path))
    living, dead = start(OBEDIENT), start(OBEDIENT)
    state.record([living.pid, dead.pid])
    dead.kill()
    dead.wait()
    assert [process.pid for process in state.survivors()] == [living.pid]


def test_a_reused_pid_is_nobody_of_ours(
    tmp_path: Path, start: Callable[[str], subprocess.Popen[bytes]]
) -> None:
    state = StateDir(str(tmp_path))
    stranger = start(OBEDIENT)
    entry = {"pid": stranger.pid, "start_time": 1}
    (tmp_path / "workers.json").write_text(json.dumps([entry]))
    assert state.survivors() == []


@pytest.mark.parametrize("content", ["", "{", "[1]", '[{"pid": "x"}]', '[{"x": 1}]', "null"])
def test_a_damaged_record_is_said_and_left(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "workers.json").write_text(content)
    assert StateDir(str(tmp_path)).survivors() == []
    assert "its processes are not looked for" in caplog.text


async def test_survivors_are_asked_to_drain_and_then_killed(
    start: Callable[[str], subprocess.Popen[bytes]],
) -> None:
    obedient, stubborn = start(OBEDIENT), start(STUBBORN)
    recorded = [known(obedient.pid), known(stubborn.pid)]
    await dismiss([process for process in recorded if process is not None], timeout=0.3)
    assert obedient.wait(5) == -signal.SIGTERM
    assert stubborn.wait(5) == -signal.SIGKILL


async def test_a_stranger_with_the_pid_is_left_alone(
    start: Callable[[str], subprocess.Popen[bytes]],
) -> None:
    stranger = start(OBEDIENT)
    await dismiss([Known(stranger.pid, 1)], timeout=0.1)
    assert stranger.poll() is None
