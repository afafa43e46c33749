"""What tests of the whole look at from outside: conditions, processes, commands, metrics."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from prometheus_client.parser import text_string_to_metric_families

T = TypeVar("T")
# An address of this machine's inside, which no client may ever be told.
INTERNAL = re.compile(rb"127\.0\.0\.1:(?:1\d{4}|2[0-4]\d{3})\b")


async def eventually(
    look: Callable[[], Awaitable[T] | T], within_s: float, what: str = "", every_s: float = 0.02
) -> T:
    """What `look` gives once it is true; other processes have no event to wait for."""
    deadline = time.monotonic() + within_s
    while True:
        found = look()
        if isinstance(found, Awaitable):
            found = await found
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what or look}"
        await asyncio.sleep(every_s)


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet does not count."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat[stat.rindex(")") + 2] not in "ZX"


def gone(pid: int) -> bool:
    """Whether all of a process has ended: its last thread too, and with it its connections."""
    return not Path(f"/proc/{pid}").exists()


def ended(pid: int) -> bool:
    """As `gone`, also of one that nobody has waited for yet."""
    try:
        return not alive(pid) and len(os.listdir(f"/proc/{pid}/task")) <= 1
    except FileNotFoundError:
        return True


def processes_of(folder: Path) -> dict[int, str]:
    """Every process that was started with this temporary folder: pid to command line."""
    found = {}
    mark = f"TMPDIR={folder}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().decode()
    return found


async def gatewayd(*argv: str, env: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    """A command as typed: exit code, standard output, standard error."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gatewayd", *argv),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(env or {})},
    )
    try:
        async with asyncio.timeout(30):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def request_id(line: str) -> str:
    """Of an access line."""
    return line.split()[13]


def worker(line: str) -> str:
    """Which worker wrote an access line: its ids begin alike."""
    return request_id(line)[:16]


class Metrics(dict[tuple[str, tuple[tuple[str, str], ...]], float]):
    """Samples by name and labels: `metrics.get_("gatewayd_requests_total", code="200")`."""

    def __init__(self, text: str) -> None:
        self.text = text
        super().__init__(
            ((sample.name, tuple(sorted(sample.labels.items()))), sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        )

    def matching(self, name: str, **labels: str) -> Iterator[float]:
        wanted = set(labels.items())
        return (v for (n, have), v in self.items() if n == name and wanted <= set(have))

    def total(self, name: str, **labels: str) -> float:
        """The sum of all series with these labels; 0 without any."""
        return sum(self.matching(name, **labels))
