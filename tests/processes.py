"""Processes as their supervisor sees them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


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


def started_with(variable: str) -> dict[int, str]:
    """Every process with this `NAME=value` in its environment: pid to command line."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if variable.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().decode()
    return found
