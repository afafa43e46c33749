"""A gateway from its configuration to its exit code.

Owns: signals, what happens when start-up fails or is interrupted. Does not own: starting and
stopping (control.control).
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Mapping, Sequence

from gatewayd.config.model import Config
from gatewayd.control.control import Control
from gatewayd.control.reload import LoadConfig
from gatewayd.control.spawn import Argv, Spawned, own_command
from gatewayd.control.survivors import StateDirError
from gatewayd.core.model import Address
from gatewayd.net.eventlog import announce
from gatewayd.net.handover import Inherited
from gatewayd.net.listeners import ListenError

_log = logging.getLogger(__name__)

Ready = Callable[[tuple[Address, ...]], None]


async def serve(
    config: Config,
    ready: Ready | None = None,
    *,
    load: LoadConfig | None = None,
    environ: Mapping[str, str] | None = None,
    argv: Argv = own_command,
    ahead: list[Spawned] | None = None,
    inherited: Inherited | None = None,
    again: Sequence[str] | None = None,
) -> int:
    """Serve until a signal or cancellation says stop. The exit code: 0 clean, 1 failure.

    `ready` is called once with the public addresses that are bound, when every worker serves;
    without it one line of the log says so, whatever its level. `ahead` are workers that were
    started already; those that are taken are taken out of it.
    `load` reads the configuration again for a reload; without it there is nothing to reload.
    `again` is the command that starts a successor, `inherited` what a predecessor handed to us.
    """
    control = Control(
        config,
        load=load,
        environ=environ or {},
        argv=argv,
        ahead=ahead or [],
        inherited=inherited,
        again=again,
    )
    _listen_to_signals(control)  # from now on: whoever is stopped while starting leaves nobody
    try:
        if await _start_unless_stopped(control):
            control.notifier.ready()
            if ready is not None:
                ready(control.addresses)
            else:
                announce(control.parts.status.summary())
            await control.stop_asked.wait()
    except (ListenError, StateDirError) as error:
        _log.error("%s", error)
        return 1
    finally:
        await control.stop()
    return 0


async def _start_unless_stopped(control: Control) -> bool:
    """False when a signal came first."""
    start = asyncio.create_task(control.start(), name="start")
    stop = asyncio.create_task(control.stop_asked.wait(), name="stop signal")
    try:
        await asyncio.wait((start, stop), return_when=asyncio.FIRST_COMPLETED)
        if start.done():
            await start
            return True
        return False
    finally:
        start.cancel()
        stop.cancel()
        await asyncio.gather(start, stop, return_exceptions=True)


def _listen_to_signals(control: Control) -> None:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, control.ask_to_stop)
    loop.add_signal_handler(signal.SIGINT, control.ask_to_stop)
    loop.add_signal_handler(signal.SIGHUP, control.ask_to_reload)
    loop.add_signal_handler(signal.SIGUSR1, control.reopen_logs)
    loop.add_signal_handler(signal.SIGUSR2, control.ask_to_be_succeeded)
