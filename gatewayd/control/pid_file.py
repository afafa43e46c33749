"""The pid for whoever supervises by a file.

Owns: `gatewayd.pid` in the run directory. Does not own: when it is written (control.control).
"""

from __future__ import annotations

import os
from pathlib import Path

from gatewayd.control.survivors import StateDirError


class PidFile:
    """None of a `run_dir`: no file."""

    def __init__(self, run_dir: str | None) -> None:
        self._path = None if run_dir is None else Path(run_dir, "gatewayd.pid")

    def __repr__(self) -> str:
        return f"<PidFile {self._path}>"

    def write(self) -> None:
        """Raises StateDirError."""
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._path.write_text(f"{os.getpid()}\n")
        except OSError as error:
            raise StateDirError(f"run_dir {self._path.parent}: {error.strerror}") from error

    def remove(self) -> None:
        """Unless it has become a successor's."""
        if self._path is not None:
            try:
                if self._path.read_text() == f"{os.getpid()}\n":
                    self._path.unlink()
            except OSError:
                pass
