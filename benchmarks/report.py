"""What is reported: lines with bounds, samples of rounds, the verdict, the table, the machine.

Owns: medians, ratios and whether a bound holds. Does not own: how a sample came about (figures).
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from benchmarks.bench import Bench

SUBJECT = "gatewayd"
PEER = "nginx"
_SATURATED = 0.85


@dataclass(frozen=True)
class Bound:
    """`of` the ratio to nginx, or of the subject's own value (the worst round, when `worst`)."""

    op: Literal["<=", ">="]
    limit: float
    of: Literal["ratio", "value"] = "ratio"
    worst: bool = False

    def __str__(self) -> str:
        return f"{self.op} {self.limit:g}" + (" x" if self.of == "ratio" else "")

    def holds(self, value: float) -> bool:
        return value <= self.limit if self.op == "<=" else value >= self.limit


@dataclass(frozen=True)
class Line:
    key: str
    title: str
    unit: str
    bound: Bound | None = None


@dataclass
class Samples:
    """What the rounds gave: values[line][proxy] is a list with one value per round."""

    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)  # of one line, the others stand
    busy: dict[str, list[float]] = field(default_factory=dict)  # share of its core, by proxy

    def add(self, line: str, proxy: str, value: float) -> None:
        self.values.setdefault(line, {}).setdefault(proxy, []).append(value)

    def judge_throughput(self, line: str, *, bounded: bool) -> None:
        """A proxy's throughput is known only when its core was the limit. Where nginx was not
        at its own, the ratio flatters the other: no number then for a line with a bound."""
        shares = {name: statistics.median(rounds) for name, rounds in self.busy.items()}
        told = "core of the proxy busy: " + ", ".join(f"{n} {s:.0%}" for n, s in shares.items())
        limited = min(shares.values()) < _SATURATED
        told += "; where it was not, the load or others on the machine were the limit" * limited
        self.notes[line] = told
        if bounded and shares.get(PEER, 1.0) < _SATURATED:
            self.errors[line] = told


@dataclass(frozen=True)
class Figure:
    """One thing to measure; `run` fills in samples for every line, or raises."""

    key: str
    lines: tuple[Line, ...]
    run: Callable[[Bench, Samples], None]


@dataclass
class Row:
    """A finished line. With `error` there is no number, and the bound does not hold."""

    key: str
    title: str
    unit: str
    subject: float | None = None
    peer: float | None = None
    ratio: float | None = None
    spread: tuple[float, float] | None = None  # least and greatest ratio of a round
    bound: str = ""
    ok: bool | None = None
    error: str = ""
    note: str = ""
    samples: Mapping[str, Sequence[float]] = field(default_factory=dict)


def judge(line: Line, samples: Samples, error: str = "") -> Row:
    bound = line.bound
    row = Row(line.key, line.title, line.unit, bound=str(bound or ""))
    row.error = error or samples.errors.get(line.key, "")
    row.note = samples.notes.get(line.key, "")
    values = samples.values.get(line.key, {})
    row.samples = {name: [round(v, 9) for v in rounds] for name, rounds in values.items()}
    if not row.error and not values.get(SUBJECT):
        row.error = "not measured"
    if row.error:
        row.ok = False if bound else None
        return row
    mine, theirs = values[SUBJECT], values.get(PEER, [])
    worst = max(mine) if bound is None or bound.op == "<=" else min(mine)
    row.subject = worst if bound and bound.worst else statistics.median(mine)
    if theirs:
        row.peer = statistics.median(theirs)
    if row.peer and row.peer > 0 and row.subject >= 0:  # a difference may lie below the noise
        row.ratio = row.subject / row.peer
        pairs = [a / b for a, b in zip(mine, theirs, strict=False) if b > 0]
        row.spread = (min(pairs), max(pairs)) if pairs else None
    if bound:
        judged = row.subject if bound.of == "value" else row.ratio
        if judged is None:
            row.error = f"no ratio: {PEER} measured {row.peer}"
        row.ok = judged is not None and bound.holds(judged)
    return row


# --- the machine and the run ---------------------------------------------------------------------


def _said(argv: Sequence[str], cwd: Path | None = None) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=cwd)
    return (done.stdout or done.stderr).strip()


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def describe_machine(root: Path, nginx: str) -> dict[str, Any]:
    """Where the figures are from. `dirty` tells that the tree held more than the commit."""
    import importlib.metadata as metadata

    versions = {}
    for name in ("aiohttp", "uvloop", "httptools", "sglang-router"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    code = ["gatewayd", "benchmarks", "pyproject.toml"]
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _said(["git", "rev-parse", "--short=10", "HEAD"], root) or "unknown",
        "dirty": bool(_said(["git", "status", "--porcelain", "--", *code], root)),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "nginx": _said([nginx, "-v"]).rpartition("/")[2],
        "load_at_start": round(os.getloadavg()[0], 2),
        "versions": versions,
    }


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def table(rows: Sequence[Row], subject: str) -> str:
    """A Markdown table, aligned so that it is readable as plain text too."""
    head = ["figure", "unit", subject, PEER, "ratio", "(rounds)", "bound", "ok?"]
    lines = [head]
    for row in rows:
        spread = f"{row.spread[0]:.2f}–{row.spread[1]:.2f}" if row.spread else ""
        ratio = f"{row.ratio:.2f}" if row.ratio is not None else "–"
        verdict = "" if row.ok is None else "yes" if row.ok else "**NO**"
        figures = [_number(row.subject), _number(row.peer), ratio, spread]
        if row.error:
            figures = ["error", "", "", ""]
        lines.append([row.title, row.unit, *figures, row.bound, verdict])
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
            for line in lines]  # fmt: skip
    text.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    remarks: dict[str, str] = {}  # an error of a figure is told once, with its first line
    for row in rows:
        if row.error or row.note:
            remarks.setdefault(row.error or row.note, f"* {row.title}: {row.error or row.note}")
    return "\n".join(text + (["", *remarks.values()] if remarks else [])) + "\n"


def markdown(rows: Sequence[Row], run: Mapping[str, Any], subject: str) -> str:
    machine = run["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    settings = ", ".join(f"{name} {value}" for name, value in run["settings"].items())
    dirty = " with uncommitted changes" if machine["dirty"] else ""
    return (
        f"# {subject} against nginx, {machine['date']}\n\n"
        f"Commit {machine['commit']}{dirty}. {machine['cpu']}, {machine['cores']} cores, "
        f"Linux {machine['kernel']}, Python {machine['python']}, nginx {machine['nginx']}, "
        f"{versions}. Load average at the start {machine['load_at_start']}.\n\n"
        f"Settings: {settings}. Took {run['took_s']:.0f} s. "
        f"Medians of the rounds; (rounds) is the least and greatest ratio of a single round.\n\n"
        + table(rows, subject)
    )


def save(rows: Sequence[Row], run: Mapping[str, Any], folder: Path, subject: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    machine = run["machine"]
    stem = f"{machine['date'][:10]}-{machine['commit']}{'-dirty' if machine['dirty'] else ''}"
    path = folder / f"{stem}.json"
    content = {**run, "subject": subject, "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    path.with_suffix(".md").write_text(markdown(rows, run, subject))
    return path
