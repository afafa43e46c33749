"""The benchmark's harness: what it says when something is wrong, and that it leaves nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # `benchmarks` is a folder of the repository, not installed

from benchmarks.report import PEER, SUBJECT, Bound, Line, Samples, judge, table  # noqa: E402

RUN = [sys.executable, str(ROOT / "benchmarks" / "run.py")]
SHORT = ["--stand-in", "--rounds", "1", "--seconds", "1"]


def samples(subject: list[float], peer: list[float]) -> Samples:
    made = Samples()
    for name, values in ((SUBJECT, subject), (PEER, peer)):
        for value in values:
            made.add("x", name, value)
    return made


@pytest.mark.parametrize(
    ("bound", "ok"),
    [
        (Bound("<=", 1.1), True),
        (Bound("<=", 1.0), False),
        (Bound(">=", 1.0), True),
        (Bound("<=", 22.0, of="value"), True),
        (Bound("<=", 22.0, of="value", worst=True), False),
    ],
)
def test_a_bound_is_judged_on_medians_or_on_the_worst_round(bound: Bound, ok: bool) -> None:
    row = judge(Line("x", "x", "µs", bound), samples([20, 21, 40], [19, 20, 22]))
    assert row.ok is ok


def test_a_figure_that_failed_has_no_number_whatever_its_rounds_gave() -> None:
    row = judge(Line("x", "x", "µs", Bound("<=", 2)), samples([1], [1]), "a worker died")
    assert (row.subject, row.ratio, row.ok) == (None, None, False)
    assert "error" in table([row], SUBJECT)


def test_a_line_without_samples_is_an_error_and_not_a_pass() -> None:
    row = judge(Line("x", "x", "µs", Bound("<=", 2)), Samples())
    assert (row.ok, row.error) == (False, "not measured")


@pytest.mark.parametrize(("share", "error"), [(0.97, False), (0.4, True)])
def test_throughput_below_what_nginx_can_do_is_not_compared(share: float, error: bool) -> None:
    made = samples([2000], [3000])
    made.busy = {SUBJECT: [0.99], PEER: [share]}
    made.judge_throughput("x", bounded=True)
    row = judge(Line("x", "x", "requests/s", Bound(">=", 0.5)), made)
    assert (bool(row.error), row.ok) == (error, not error)


def run(tmp: Path, *args: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "TMPDIR": str(tmp)}
    return subprocess.run(
        [*RUN, *args], capture_output=True, text=True, timeout=60, env=env, check=False
    )


def test_an_unknown_figure_is_a_usage_error(tmp_path: Path) -> None:
    done = run(tmp_path, "--only", "gte")
    assert done.returncode == 2
    assert "no figure gte; there are get," in done.stderr


@pytest.mark.needs("nginx")
@pytest.mark.needs("wrk")
def test_a_short_run_gives_figures_and_leaves_nothing(tmp_path: Path) -> None:
    done = run(tmp_path, *SHORT, "--only", "post")
    assert "FAILED" not in done.stderr
    assert "POST 4 KiB for 2 KiB, CPU" in done.stdout
    assert "| error" not in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.needs("nginx")
@pytest.mark.needs("wrk")
def test_a_gateway_that_does_not_start_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    done = run(tmp_path, "--only", "get", "--gatewayd", f"{sys.executable} -c raise(SystemExit(7))")
    assert done.returncode == 1
    assert "gatewayd exited 7" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def running(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    argv = [*RUN, *SHORT, "--only", "start,idle-cpu"]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=env) as process:
        yield process
        process.kill()


def mentioning(path: Path) -> list[str]:
    lines = [entry / "cmdline" for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [words for line in lines if str(path) in (words := _read(line))]


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


@pytest.mark.needs("nginx")
@pytest.mark.needs("wrk")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_stops_everything_and_says_so(
    running: subprocess.Popen[str], tmp_path: Path, number: signal.Signals
) -> None:
    assert running.stderr is not None
    assert running.stderr.readline().startswith("start: ")  # ten seconds of the next follow
    running.send_signal(number)
    _, said = running.communicate(timeout=20)
    assert running.returncode == 130
    assert "interrupted, everything stopped" in said
    assert list(tmp_path.iterdir()) == []
    assert mentioning(tmp_path) == []


def test_decisions_are_timed_and_missing_ones_skipped(tmp_path: Path) -> None:
    script = ROOT / "benchmarks" / "micro.py"
    done = subprocess.run(
        [sys.executable, str(script), "--only", "path,limit-key", "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert all(0 < value < 1000 for value in json.loads(done.stdout).values())


def test_the_path_of_a_request_is_measured_without_a_kernel() -> None:
    argv = [sys.executable, "-m", "benchmarks.path", "--count", "50", "--rounds", "1"]
    out = subprocess.run(argv, cwd=ROOT, check=True, capture_output=True, text=True, timeout=60)
    figures = {line.split()[0]: float(line.split()[1]) for line in out.stdout.splitlines()}
    assert set(figures) == {"get", "post", "post-in-two", "sse", "connect"}
    assert all(figures.values())
