"""How the kernel shares a core among the processes of the data plane.

Owns: their scheduling policy. Does not own: which processes there are (control), a router's own
launcher, which imports nothing of ours and does the same by itself.
"""

from __future__ import annotations

import os


def run_in_turns() -> None:
    """Whoever is woken waits for the turn of who runs (SCHED_BATCH, sched(7)).

    A request passes from process to process. Where they share a core, the default policy lets the
    one that is woken push its waker aside at each write, so that everybody works on one request at
    a time and switches for each: it costs three times as much (ADR 0013). On an idle core nothing
    changes. An operator's own choice of policy stays.
    """
    try:
        if os.sched_getscheduler(0) == os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except OSError:
        pass  # a sandbox forbids it: slower on few cores, and nothing else
