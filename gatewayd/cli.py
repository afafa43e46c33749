"""The command line. Owns: argv to role. Does not own: what a role does."""

from __future__ import annotations

import argparse
import os
import sys


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gatewayd")
    commands = parser.add_subparsers(dest="command", required=True)
    for role in ("worker", "bridge"):
        commands.add_parser(role).add_argument("--channel-fd", type=int, required=True)
    commands.add_parser("run").add_argument("-c", dest="config", required=True)
    args = parser.parse_args(argv)
    if args.command == "worker":
        from gatewayd.proxy.worker import main as worker

        return worker(args.channel_fd)
    if args.command == "bridge":
        from gatewayd.bridge.main import main as bridge

        return bridge(args.channel_fd)
    import uvloop

    from gatewayd.config.errors import ConfigError
    from gatewayd.config.load import load_config
    from gatewayd.control import eventlog
    from gatewayd.control.control import serve

    try:
        config = load_config(args.config, os.environ)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    eventlog.configure(config.log)
    return uvloop.run(serve(config, lambda a: print("ready", *a, file=sys.stderr)))
