"""The demand of the last minutes on disk, so that a restart of control does not look like silence.

Owns: the file. Does not own: what is counted (core.demand), when it is written (control.demands).

Times are of the monotonic clock, so a file of another boot says nothing and is not used. Losing it
costs five minutes of statistics: it is replaced as a whole, and damage is said and got over.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gatewayd.core.demand import Demand, Moment

_log = logging.getLogger(__name__)
_VERSION: Final = 1
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Kept:
    """Of one service. `total` is everything counted so far, `column` of it what control's own
    table had counted there."""

    total: Demand
    moments: Sequence[Moment]
    column: int
    counted: Demand


class DemandStore:
    def __init__(self, state_dir: str) -> None:
        self._path = Path(state_dir, "demand.json")
        self._failing = False

    def __repr__(self) -> str:
        return f"<DemandStore {self._path}>"

    def save(self, table: int, kept: Mapping[str, Kept]) -> None:
        """`table` is the one that `counted` is of. May run in a thread. A full disk costs what is
        written here and nothing else."""
        services = {
            name: [entry.column, entry.total, entry.counted, entry.moments]
            for name, entry in kept.items()
        }
        text = json.dumps(
            {"version": _VERSION, "boot": _boot(), "table": table, "services": services}
        )
        fresh = self._path.with_suffix(".new")
        try:
            fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(fd, "w") as file:
                file.write(text)
            fresh.replace(self._path)
        except OSError as error:
            if not self._failing:  # once, not every few seconds
                _log.error("cannot write %s: %s", self._path, error.strerror)
            self._failing = True
        else:
            self._failing = False

    def load(self, now: int) -> tuple[int, dict[str, Kept]]:
        """What an earlier control of this boot has saved."""
        try:
            found = json.loads(self._path.read_text())
            if found["version"] != _VERSION or found["boot"] != _boot():
                return 0, {}
            table = int(found["table"])
            kept = {name: _read(entry) for name, entry in found["services"].items()}
        except FileNotFoundError:
            return 0, {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            _log.error("cannot read %s, statistics begin anew: %s", self._path, error)
            return 0, {}
        return table, {name: entry for name, entry in kept.items() if entry.moments[-1].at <= now}


def _read(entry: Any) -> Kept:
    """Raises ValueError, TypeError or IndexError for what was not written by `save`."""
    column, total, counted, moments = entry
    kept = Kept(Demand(*total), tuple(Moment(*m) for m in moments), column, Demand(*counted))
    numbers = [column, *kept.total, *kept.counted, *(n for m in kept.moments for n in m)]
    if not kept.moments or not all(type(number) is int for number in numbers):
        raise ValueError("a service without moments, or what is no whole number")
    return kept


def _boot() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""
