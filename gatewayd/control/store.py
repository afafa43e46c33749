"""The registered state on disk: written whole or not at all, and never silently lost.

Owns: two files in the state directory, the newest and the good one before it; what becomes of a
damaged one. Does not own: their form (control.records), when they are written (control.keeper).

    registry.json            0600, renamed over, it and its directory synced
    registry.json.previous   the copy before
    registry.json.damaged-<time>   what could not be read: kept for whoever looks into it
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from gatewayd.control.records import Encoder, UnreadableError, decode
from gatewayd.control.saved import Saved

_log = logging.getLogger(__name__)

NAME: Final = "registry.json"
_FAULTS_SHOWN: Final = 5


class Store:
    """`clock` names what is moved aside. The folder is the owner's alone (control.survivors)."""

    def __init__(self, folder: str | Path, *, clock: Callable[[], float] = time.time) -> None:
        self._path = Path(folder, NAME)
        self._previous = self._path.with_name(f"{NAME}.previous")
        self._clock = clock
        self._encoder = Encoder()

    def __repr__(self) -> str:
        return f"<Store {self._path}>"

    @property
    def empty(self) -> bool:
        """Whether nothing was ever saved here."""
        return not self._path.exists() and not self._previous.exists()

    def save(self, saved: Saved) -> None:
        """Returns when it is on disk. Raises OSError, and then what was there is there still."""
        data = self._encoder.encode(saved)
        fresh = self._path.with_name(f"{NAME}.new")
        try:
            write_private(fresh, data)
            self._keep_previous()
            fresh.replace(self._path)
        except OSError:
            with suppress(OSError):
                fresh.unlink(missing_ok=True)  # half a file on a full disk helps nobody
            raise
        sync_folder(self._path.parent)

    def load(self) -> Saved:
        """What was saved last, else the good copy before it, else whatever can be read. Of
        damage one line of the log tells; it never stops a start."""
        saved, fault = _read(self._path)
        if not fault and saved is not None:
            return saved
        older, older_fault = _read(self._previous)
        if not fault and older is None and not older_fault:
            return Saved()  # the first start
        if older is not None and not older_fault:
            used, what = older, "the copy before it is used"
        elif saved is not None:
            used, what = saved, "the rest of it is used"
        elif older is not None:
            used, what = older, f"the copy before it is used, without {older_fault}"
        else:
            used, what = Saved(), "nothing is known of what was registered"
            if older_fault:
                what += f"; {self._previous}: {older_fault}"
        aside = self._set_aside() if fault else None
        where = "" if aside is None else f", moved to {aside.name}"
        _log.error("%s: %s%s; %s", self._path, fault or "missing", where, what)
        return used

    def _keep_previous(self) -> None:
        """By a link, so that there is no moment without a newest file."""
        link = self._path.with_name(f"{NAME}.link")
        link.unlink(missing_ok=True)
        try:
            os.link(self._path, link)
        except FileNotFoundError:
            return  # the first one
        link.replace(self._previous)

    def _set_aside(self) -> Path | None:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self._clock()))
        aside = self._path.with_name(f"{NAME}.damaged-{stamp}")
        try:
            self._path.rename(aside)
        except OSError as error:
            _log.error("cannot move %s aside: %s", self._path, error.strerror)
            return None
        return aside


def _read(path: Path) -> tuple[Saved | None, str]:
    """What can be read, and what is wrong. Nothing and no fault: there is no such file."""
    try:
        saved, faults = decode(path.read_bytes())
    except FileNotFoundError:
        return None, ""
    except OSError as error:
        return None, f"cannot be read: {error.strerror}"
    except UnreadableError as error:
        return None, str(error)
    more = f" and {len(faults) - _FAULTS_SHOWN} more" if len(faults) > _FAULTS_SHOWN else ""
    return saved, "; ".join(faults[:_FAULTS_SHOWN]) + more


def write_private(path: Path, data: bytes) -> None:
    """A new file of the owner's alone, on disk when this returns. Raises OSError."""
    path.unlink(missing_ok=True)  # whatever its mode was
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(fd)


def sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
