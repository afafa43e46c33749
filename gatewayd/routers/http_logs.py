"""The router's log files, which it begins anew each day and never deletes.

Owns: how many there are and how large. Does not own: writing them (the router itself).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

FILES: Final = 7
SIZE: Final = 16 * 1024 * 1024


def tidy(directory: Path, *, files: int = FILES, size: int = SIZE) -> None:
    """Keep the newest `files` files of at most `size` bytes. Raises OSError.

    The one being written is copied and emptied, not moved: the router keeps it open, and appends.
    """
    found = sorted(
        (path for path in directory.glob("smg.*") if path.is_file()),
        key=lambda path: (path.stat().st_mtime_ns, path.name),
        reverse=True,
    )
    for path in found[files:]:
        path.unlink(missing_ok=True)
    for path in found[:files]:
        if path.stat().st_size > size:
            if not path.name.endswith(".old"):
                shutil.copyfile(path, path.with_name(path.name + ".old"))
            with path.open("r+b") as file:
                file.truncate(0)
