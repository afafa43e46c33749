"""What was registered before this start: our own state, or once that of another gateway.

Owns: which of them, and the command that takes one over beforehand. Does not own: reading either
(control.store, control.inherit).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from gatewayd.config.model import Config
from gatewayd.control.saved import Saved
from gatewayd.control.store import Store
from gatewayd.control.survivors import StateDir, StateDirError

_log = logging.getLogger(__name__)


class ImportRefusedError(Exception):
    """Nothing was imported; the text says why."""


def last_state(config: Config, store: Store) -> Saved:
    """Never raises for what it finds on disk: a gateway starts, and says what is missing."""
    if config.import_state is None or not store.empty:
        return store.load()
    path = Path(config.import_state)
    if not path.exists():
        _log.info("import_state: there is no %s, so nothing to import", path)
        return store.load()
    try:
        saved, told = _inherit(path, Path(config.import_keys), config)
        store.save(saved)
    except ImportRefusedError as error:
        _log.error("import_state: %s; nothing is imported", error)
        return Saved()
    except OSError as error:
        _log.error("import_state: cannot save what was imported: %s", error.strerror or error)
    for line in told:
        _log.warning("import_state: %s", line)
    _log.info("imported %s: %d services", path, len(saved.services))
    return saved


def import_state(config: Config, path: Path, keys: Path) -> tuple[Saved, Sequence[str]]:
    """For a gateway that does not run. Gives what was taken over, and a line for each thing that
    was not. Raises ImportRefusedError, StateDirError."""
    state_dir = StateDir(config.state_dir)
    state_dir.acquire()
    try:
        store = Store(config.state_dir)
        if not store.empty:
            raise ImportRefusedError(
                f"state_dir {config.state_dir} has a registered state already; "
                "import into an empty one"
            )
        saved, told = _inherit(path, keys, config)
        try:
            store.save(saved)
        except OSError as error:
            raise StateDirError(f"state_dir {config.state_dir}: {error.strerror}") from error
    finally:
        state_dir.release()
    return saved, told


def _inherit(path: Path, keys: Path, config: Config) -> tuple[Saved, list[str]]:
    # Imported when it is needed: starts without an import must not pay for the admin API twice.
    from gatewayd.control.inherit import NotInheritedError, inherit

    try:
        return inherit(path, keys, config)
    except NotInheritedError as error:
        raise ImportRefusedError(str(error)) from error
