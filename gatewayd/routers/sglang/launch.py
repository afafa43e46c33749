"""The router's own process: `python launch.py POLICY [flags]`; imports nothing of ours.

Owns: starting the installed router from its flags. Does not own: which flags (options).

Not the package's `launch_router`: that also imports the web frameworks of its debugging balancer,
0.5 s of a start that takes 0.4 s, and its flag knows only some of the policies that its server has.
The key comes by the environment, which other users of the machine cannot read; a command line
they can.
"""

from __future__ import annotations

import argparse
import os
import sys


def main() -> None:
    from sglang_router.router import Router
    from sglang_router.router_args import RouterArgs

    parser = argparse.ArgumentParser(allow_abbrev=False)
    RouterArgs.add_cli_args(parser)
    args = RouterArgs.from_cli_args(parser.parse_args(sys.argv[2:]))
    args.policy = sys.argv[1]
    args.api_key = os.environ.pop("GATEWAYD_ROUTER_KEY", None)
    try:
        Router.from_args(args).start()
    except (RuntimeError, ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
