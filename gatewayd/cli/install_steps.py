"""Changes to a machine as steps that can be shown, done below another root, and undone.

Owns: writing, backups, running commands. Does not own: which steps (cli.install).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gatewayd.cli.install_files import MARK

_BACKUP: Final = ".before-gatewayd"


class InstallError(Exception):
    """A step failed; the text names it."""


@dataclass(frozen=True, slots=True)
class Machine:
    """`root` other than `/` is a folder to write below: then nothing is run and nobody is owner."""

    root: Path
    dry_run: bool
    say: Callable[[str], None]

    @property
    def real(self) -> bool:
        return self.root == Path("/")

    def at(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def exists(self, path: str) -> bool:
        return self.at(path).exists()

    def write(self, path: str, text: str, *, keep: bool = False, owner: str | None = None) -> None:
        """With `keep` a file that is there stays. Somebody else's is moved aside first."""
        target = self.at(path)
        if target.exists():
            if keep or target.read_text() == text:
                self.say(f"{path}: is there already")
                return
            if not _ours(target):
                self._move_aside(path, target)
        self.say(f"{path}: written")
        if self.dry_run:
            return
        fresh = target.with_name(f"{target.name}.new")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_text(text)
            fresh.chmod(0o644)
            if owner is not None and self.real:
                shutil.chown(fresh, owner, owner)
            fresh.replace(target)
        except (OSError, LookupError) as error:
            raise InstallError(f"{path}: {getattr(error, 'strerror', None) or error}") from error

    def remove(self, path: str) -> None:
        """Only what we have written; what was there before is put back."""
        target = self.at(path)
        backup = target.with_name(target.name + _BACKUP)
        try:
            if target.exists() and not _ours(target):
                self.say(f"{path}: somebody else's by now, left as it is")
                return
            if backup.exists():
                self.say(f"{path}: what was there before is put back")
                if not self.dry_run:
                    backup.replace(target)
            elif target.exists():
                self.say(f"{path}: removed")
                if not self.dry_run:
                    target.unlink()
        except OSError as error:
            raise InstallError(f"{path}: {error.strerror}") from error

    def run(self, *argv: str, may_fail: bool = False) -> None:
        self.say(f"$ {' '.join(argv)}")
        if self.dry_run or not self.real:
            return
        status = _status(argv)
        if status and not may_fail:
            raise InstallError(f"{' '.join(argv)}: exit status {status}")

    def _move_aside(self, path: str, target: Path) -> None:
        backup = target.with_name(target.name + _BACKUP)
        self.say(f"{path}: somebody else's, kept as {backup.name}")
        if self.dry_run:
            return
        if backup.exists():
            raise InstallError(f"{path}: {backup.name} is there already; look at both first")
        os.link(target, backup)


def _ours(path: Path) -> bool:
    return MARK in path.read_text(errors="replace").partition("\n")[0]


def _status(argv: Sequence[str]) -> int:
    try:
        return subprocess.run(argv, check=False, stdin=subprocess.DEVNULL).returncode
    except OSError as error:
        raise InstallError(f"{argv[0]}: {error.strerror}") from error
