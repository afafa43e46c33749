"""What tests of the whole look at from outside: conditions, processes, commands, metrics."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from processes import started_with
from prometheus_client.parser import text_string_to_metric_families

# An address of this machine's inside, which no client may ever be told.
INTERNAL = re.compile(rb"127\.0\.0\.1:(?:1\d{4}|2[0-4]\d{3})\b")


def processes_of(folder: Path) -> dict[int, str]:
    """Every process that was started with this temporary folder: pid to command line."""
    return started_with(f"TMPDIR={folder}")


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
