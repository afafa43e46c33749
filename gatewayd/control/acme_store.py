"""Accounts and certificates of ACME on disk.

Owns: the files below `certificates/` of the state directory, 0600, written whole or not at all.
Does not own: what is in an account (control.acme_server), which certificates there are to be
(control.renewals).

    <name>.pem            its key and chain in one file, so that they always belong together
    accounts/<hash>.json  one for each authority and binding
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from gatewayd.control.store import sync_folder, write_private

_log = logging.getLogger(__name__)

FOLDER: Final = "certificates"
_BY: Final = b"issued by: "
_BLOCK: Final = re.compile(rb"-----BEGIN ([A-Z ]+)-----\r?\n.*?-----END \1-----\r?\n?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate of an authority, for one name."""

    name: str
    server: str  # the directory's URL
    chain: bytes
    key: bytes = field(repr=False)


class AcmeStore:
    """Blocking: call it in a thread."""

    def __init__(self, state_dir: str | Path) -> None:
        self._folder = Path(state_dir, FOLDER)
        self._accounts = self._folder / "accounts"

    def __repr__(self) -> str:
        return f"<AcmeStore {self._folder}>"

    def write(self, issued: Issued) -> None:
        """Raises OSError; then the one before is there still."""
        head = _BY + issued.server.encode() + b"\n"
        self._write(self._path(issued.name), head + issued.key.rstrip() + b"\n" + issued.chain)

    def load(self) -> Iterator[Issued]:
        """All that can be read; of the rest the log tells."""
        for path in sorted(self._folder.glob("*.pem")):
            try:
                content = path.read_bytes()
            except OSError as error:
                _log.error("certificate %s cannot be read: %s", path, error.strerror)
                continue
            by = re.match(re.escape(_BY) + rb"(\S+)\n", content)
            blocks = [(m[1], m[0]) for m in _BLOCK.finditer(content)]
            keys = [block for kind, block in blocks if kind.endswith(b"PRIVATE KEY")]
            chain = b"".join(block for kind, block in blocks if kind == b"CERTIFICATE")
            if by is None or len(keys) != 1 or not chain:
                _log.error("certificate %s is damaged; another one is asked for", path)
                continue
            name = path.stem.replace("_", "*", 1) if path.stem.startswith("_.") else path.stem
            yield Issued(name, by[1].decode(errors="replace"), chain, keys[0])

    def delete(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)

    def read_account(self, server: str, kid: str | None) -> bytes | None:
        """None: there is none, or it cannot be read."""
        try:
            return self._account(server, kid).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            _log.error("the account at %s cannot be read: %s", server, error.strerror)
            return None

    def write_account(self, server: str, kid: str | None, content: bytes) -> None:
        self._write(self._account(server, kid), content)

    def _path(self, name: str) -> Path:
        # `*` is awkward in a shell; no host name has an underscore here.
        return self._folder / f"{name.replace('*', '_', 1)}.pem"

    def _account(self, server: str, kid: str | None) -> Path:
        named = hashlib.sha256(f"{server}\n{kid or ''}".encode()).hexdigest()[:24]
        return self._accounts / f"{named}.json"

    def _write(self, path: Path, content: bytes) -> None:
        for folder in (self._folder, path.parent):
            folder.mkdir(mode=0o700, exist_ok=True)
        fresh = path.with_name(f"{path.name}.new")
        try:
            write_private(fresh, content)
            os.replace(fresh, path)
        except OSError:
            with suppress(OSError):
                fresh.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
