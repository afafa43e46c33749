"""`gatewayd upgrade`: ask the running gateway to replace itself, and see whether it did.

Owns: the signal, waiting, the exit code. Does not own: how it replaces itself
(control.succession), the client (cli.admin).
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from typing import Any, Final

from gatewayd.cli import EXIT_FAILURE, EXIT_OK, complain

_STEP_S: Final = 0.1
_AT_MOST_S: Final = 120.0


def upgrade(options: argparse.Namespace) -> int:
    from gatewayd.cli.admin import Admin, AdminError, admin_address

    try:
        admin = Admin(admin_address(options))
        before = admin.get("/api/status")
    except AdminError as error:
        complain(str(error))
        return EXIT_FAILURE
    try:
        os.kill(before["pid"], signal.SIGUSR2)
    except (ProcessLookupError, PermissionError) as error:
        complain(f"cannot signal pid {before['pid']}: {error.strerror}; run this where it runs")
        return EXIT_FAILURE
    deadline = time.monotonic() + _AT_MOST_S
    while time.monotonic() < deadline:
        try:
            now = admin.get("/api/status")
        except AdminError:  # it was asked in the moment of the change
            now = before
        if now["pid"] != before["pid"]:
            print(
                f"pid {now['pid']} serves, gatewayd {now['version']}; "
                f"pid {before['pid']} finishes what runs"
            )
            return EXIT_OK
        if (fault := _fault(before, now)) is not None:
            complain(f"the successor {fault}; pid {before['pid']} goes on")
            return EXIT_FAILURE
        time.sleep(_STEP_S)
    complain(f"no successor within {_AT_MOST_S:g} s; the log says why")
    return EXIT_FAILURE


def _fault(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """Why the try that we have asked for has failed."""
    if (
        now["succession"]["tries"] == before["succession"]["tries"]
        or now["succession"]["under_way"]
    ):
        return None
    return str(now["succession"]["fault"] or "was not started")
