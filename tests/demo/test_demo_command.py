"""`gatewayd demo` as typed: the real control process, workers, router, bridge and replicas."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

DEMO = (sys.executable, "-m", "gatewayd", "demo", "--listen", "127.0.0.1:0")


@asynccontextmanager
async def running(*argv: str, folder: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *argv, stdout=asyncio.subprocess.PIPE, env={**os.environ, "TMPDIR": str(folder)}
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def read_until(process: asyncio.subprocess.Process, last_line: str) -> str:
    assert process.stdout is not None
    text = ""
    while line := (await process.stdout.readline()).decode():
        text += line
        if line.rstrip() == last_line:
            return text
    pytest.fail(f"ended with {await process.wait()} after:\n{text}")


async def output_of(*argv: str) -> str:
    process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert process.returncode == 0, argv
    return out.decode()


def left_in(folder: Path) -> list[str]:
    """Files of the demo, and command lines of all that mention its folder."""
    lines = [str(path) for path in folder.iterdir()]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if str(folder) in line:
                lines.append(line)
    return lines


@pytest.mark.needs("curl")
async def test_what_it_prints_works_as_printed(tmp_path: Path) -> None:
    async with asyncio.timeout(60), running(*DEMO, folder=tmp_path) as demo:
        printed = await read_until(demo, "Ctrl-C stops it.")
        assert "No language model runs here" in printed.split("The demo is up")[0]

        (curl,) = re.findall(r"^    (curl -N .*)$", printed, re.MULTILINE)
        out = await output_of("sh", "-c", f"{curl} -sS")
        assert out.startswith("data: {")
        assert out.endswith("data: [DONE]\n\n")

        snippet = printed.split("from Python:\n\n")[1].split("\nand see")[0]
        code = re.sub("^    ", "", snippet, flags=re.MULTILINE)
        assert (await output_of(sys.executable, "-c", code)).endswith("words: “Hello”")

        (status,) = re.findall(r"^    (.* status .*)$", printed, re.MULTILINE)
        table = await output_of("sh", "-c", status)
        assert "demo" in table
        (metrics,) = re.findall(r"^    (curl --unix-socket .*)$", printed, re.MULTILINE)
        assert "gatewayd_router_up{" in await output_of("sh", "-c", f"{metrics} -sS")

        demo.send_signal(signal.SIGINT)
        assert await demo.wait() == 0
    assert left_in(tmp_path) == []


async def test_once(tmp_path: Path) -> None:
    async with asyncio.timeout(60), running(*DEMO, "--once", folder=tmp_path) as demo:
        out, _ = await demo.communicate()
        assert demo.returncode == 0
    assert "> Hello! Who are you?\n\nThis is gatewayd's demo replica" in out.decode()
    assert left_in(tmp_path) == []
