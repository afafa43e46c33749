"""A router's own process: `python http_launch.py PACKAGE POLICY [flags]`; imports nothing of ours.

Owns: starting the installed router from its flags. Does not own: which flags (http_flags).

Not the packages' own `launch_router`: one also imports the web frameworks of a debugging balancer,
0.5 s of a start that takes 0.4 s, its flag knows only some of the policies that its server has, and
both rename the process. The key comes by the environment, which other users of the machine cannot
read; a command line they can.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys


def run_in_turns() -> None:
    """As gatewayd.net.scheduling, whose reasons hold here too. Its threads inherit it."""
    try:
        if os.sched_getscheduler(0) == os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except OSError:
        pass


def main() -> None:
    run_in_turns()
    package, policy, *flags = sys.argv[1:]
    router = importlib.import_module(f"{package}.router").Router
    router_args = importlib.import_module(f"{package}.router_args").RouterArgs

    parser = argparse.ArgumentParser(allow_abbrev=False)
    router_args.add_cli_args(parser)
    args = router_args.from_cli_args(parser.parse_args(flags))
    args.policy = policy
    args.api_key = os.environ.pop("GATEWAYD_ROUTER_KEY", None)
    try:
        router.from_args(args).start()
    except (RuntimeError, ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
