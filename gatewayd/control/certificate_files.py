"""Certificates in files that somebody else keeps current.

Owns: noticing that files changed, keeping what was good while they are not. Does not own: what a
certificate says (control.certificate_pairs), who is told (control.certs).
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass

from gatewayd.config.rules import CertificateFacts
from gatewayd.control.certificate_pairs import CertificateFileError, ReadCertificate, read_files
from gatewayd.core.certificate import FileCertificate, FileSource, LiveFolder

_log = logging.getLogger(__name__)

_Stamp = tuple[tuple[int, int, int], ...]
_FULL, _KEY = "fullchain.pem", "privkey.pem"


@dataclass(slots=True)
class WatchedFiles:
    """A pair of files: the last good reading of it, and what is wrong with it now."""

    files: FileCertificate
    good: ReadCertificate | None = None
    fault: str | None = None
    stamp: _Stamp | None = None  # of what was read last
    seen: _Stamp | None = None  # at the last look

    def look(self, now: float, *, settled: bool) -> bool:
        """Read the files if they are others now. Whether what is good has changed.

        With `settled` only once they are the same at two looks: a renewal replaces one of them
        after the other, and between the two they do not belong together.
        """
        stamp = _stamp(self.files)
        moving = settled and stamp != self.seen
        self.seen = stamp
        if moving or stamp == self.stamp:
            return False
        self.stamp = stamp
        try:
            fresh = read_files(self.files)
        except CertificateFileError as error:
            self._complain(str(error))
            return False
        if self.good is not None and fresh.not_after <= now < self.good.not_after:
            self._complain(f"{self.files.cert} has expired")
            return False
        self.fault = None
        _warn_if_open(self.files.key)
        changed = fresh != self.good
        if changed and self.good is not None:
            _log.info("certificate %s was read again: %s", self.files.cert, ", ".join(fresh.names))
        self.good = fresh
        return changed

    def _complain(self, text: str) -> None:
        kept = "" if self.good is None else "; the one before stays"
        _log.error("certificate: %s%s", text, kept)
        self.fault = text + kept  # who sees it, from another thread, finds the line in the log


class CertificateFiles:
    """All pairs of some sources, in their order. Reading takes long: call it in a thread."""

    def __init__(self) -> None:
        self._files: dict[FileSource, list[FileCertificate]] = {}
        self._missing: set[FileCertificate] = set()  # at the last look, of those there were
        self._watched: dict[FileCertificate, WatchedFiles] = {}
        self.unreadable: dict[str, str] = {}  # folders, with why

    def __repr__(self) -> str:
        return f"<CertificateFiles {len(self._watched)} pairs>"

    def follow(self, sources: Iterable[FileSource], now: float) -> None:
        """These from now on; what has changed is read at once."""
        self._files = {source: self._files.get(source, []) for source in sources}
        self.look(now, settled=False)

    def look(self, now: float, *, settled: bool = True) -> bool:
        """Whether there is anything new to serve."""
        gone: set[FileCertificate] = set()
        unreadable: dict[str, str] = {}
        for source, known in self._files.items():
            found = _files(source, unreadable)
            lost = [files for files in known if found is not None and files not in found]
            gone.update(lost)
            # Certbot takes a link away before it makes the new one, and what is on another disk
            # comes and goes: only what is missing twice was taken away.
            kept = [files for files in lost if settled and files not in self._missing]
            self._files[source] = known if found is None else sorted({*found, *kept}, key=_path)
        self._missing = gone
        self._tell_folders(unreadable)
        wanted = [files for each in self._files.values() for files in each]
        before = list(self._watched)
        self._watched = {files: self._watched.get(files) or WatchedFiles(files) for files in wanted}
        changes = [
            watched.look(now, settled=settled and watched.good is not None)
            for watched in self._watched.values()
        ]
        return any(changes) or before != list(self._watched)

    def _tell_folders(self, unreadable: dict[str, str]) -> None:
        """Once: what was read from them stays, and nothing else would show until it ends."""
        before = self.unreadable
        for path in unreadable.keys() - before.keys():
            _log.warning("certificates: %s; those there were stay", unreadable[path])
        for path in before.keys() - unreadable.keys():
            _log.warning("certificates: %s is followed again", path)
        self.unreadable = unreadable

    def of(self, source: FileSource) -> list[WatchedFiles]:
        return [w for files in self._files.get(source, ()) if (w := self._watched.get(files))]

    def all(self) -> list[WatchedFiles]:
        return list(self._watched.values())


def check_certificate(source: FileSource) -> CertificateFacts:
    """For `gatewayd check` and for a file that is loaded: what is wrong, and where."""
    if isinstance(source, LiveFolder):
        return _check_folder(source)
    try:
        return CertificateFacts(frozenset(read_files(source).names))
    except CertificateFileError as error:
        return CertificateFacts(frozenset(), ((error.at, str(error)),))


def _check_folder(folder: LiveFolder) -> CertificateFacts:
    """One bad certificate of many is no reason not to start: it is told when it is read."""
    try:
        os.listdir(folder.path)
    except OSError as error:
        text = f"{folder.path} cannot be read: {error.strerror}"
        return CertificateFacts(frozenset(), (("dir", text),))
    names: set[str] = set()
    for files in _files(folder, {}) or ():
        try:
            names.update(read_files(files).names)
        except CertificateFileError:
            pass
    return CertificateFacts(frozenset(names))


def _files(source: FileSource, unreadable: dict[str, str]) -> list[FileCertificate] | None:
    """None when the folder cannot be read, which is noted in `unreadable`: it was there when the
    file was loaded, and what was read from it stays good."""
    if isinstance(source, FileCertificate):
        return [source]
    try:
        found = sorted(entry.path for entry in os.scandir(source.path) if entry.is_dir())
    except OSError as error:
        unreadable[source.path] = f"{source.path} cannot be read: {error.strerror}"
        return None
    return [
        FileCertificate(os.path.join(path, _FULL), os.path.join(path, _KEY))
        for path in found
        if _is_there(os.path.join(path, _FULL))
    ]


def _is_there(path: str) -> bool:
    """Also one that may not be looked at: that was not deleted, and is told when it is read."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        pass
    return True


def _path(files: FileCertificate) -> str:
    return files.cert


def _warn_if_open(path: str) -> None:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return
    if mode & stat.S_IROTH:
        _log.warning("certificate: everybody on this machine can read %s; chmod 600 it", path)


def _stamp(files: FileCertificate) -> _Stamp:
    stamps = []
    for path in (files.cert, files.key):
        try:
            found = os.stat(path)
        except OSError:
            stamps.append((0, 0, 0))
        else:
            stamps.append((found.st_mtime_ns, found.st_size, found.st_ino))
    return tuple(stamps)
