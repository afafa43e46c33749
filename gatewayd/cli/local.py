"""Commands that need no running gateway: run, check, demo, schema, version.

Owns: their exit codes and their lines. Does not own: the gateway (control), the file (config).
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING

import gatewayd
from gatewayd.cli import EXIT_FAILURE, EXIT_OK, EXIT_USAGE, complain

if TYPE_CHECKING:
    from gatewayd.control.spawn import Spawned
    from gatewayd.net.handover import Inherited


def run(options: argparse.Namespace) -> int:
    from gatewayd.control import spawn
    from gatewayd.net import handover

    path = os.path.abspath(options.config)  # a reload must find it again
    try:
        inherited = handover.inherited(os.environ)
    except handover.HandoverError as error:
        complain(str(error))
        return EXIT_FAILURE
    # Before anything else is imported, so that control's and the workers' imports overlap.
    spawn.allow_descriptors()
    ahead = spawn.ahead(path)
    try:
        return _run(path, ahead, inherited)
    finally:
        for spawned in ahead:
            spawned.discard()


def _run(path: str, ahead: list[Spawned], inherited: Inherited | None) -> int:
    from gatewayd.config.errors import ConfigError
    from gatewayd.config.load import load_config
    from gatewayd.control.certificate_check import check_certificate
    from gatewayd.control.router_check import check_router
    from gatewayd.control.serve import serve
    from gatewayd.net import eventlog

    load = functools.partial(
        load_config,
        path,
        os.environ,
        check_router=check_router,
        check_certificate=check_certificate,
    )
    try:
        config = load()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    eventlog.configure(config.log)
    return _in_loop(
        lambda: serve(
            config,
            load=load,
            environ=os.environ,
            ahead=ahead,
            inherited=inherited,
            again=sys.orig_argv,  # looked up anew: what is installed there by then
        )
    )


def check(options: argparse.Namespace) -> int:
    from gatewayd.config.errors import ConfigError
    from gatewayd.config.load import load_config
    from gatewayd.control.certificate_check import check_certificate
    from gatewayd.control.limit_check import idle_limits_of
    from gatewayd.control.router_check import check_router

    try:
        config = load_config(
            options.config,
            os.environ,
            check_router=check_router,
            check_certificate=check_certificate,
        )
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    for line in idle_limits_of(config.services):
        print(f"{options.config}: {line}", file=sys.stderr)
    if options.print:
        from gatewayd.config.render import render

        print(render(config), end="")
    else:
        replicas = sum(len(service.replicas) for service in config.services)
        print(f"{options.config}: good, {len(config.services)} services, {replicas} replicas")
    return EXIT_OK


def import_state(options: argparse.Namespace) -> int:
    from pathlib import Path

    from gatewayd.config.errors import ConfigError
    from gatewayd.config.load import load_config
    from gatewayd.control.restore import ImportRefusedError, import_state
    from gatewayd.control.survivors import StateDirError

    try:
        config = load_config(options.config, os.environ)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    keys = Path(options.keys or config.import_keys)
    try:
        saved, told = import_state(config, Path(options.file), keys)
    except (ImportRefusedError, StateDirError) as error:
        complain(str(error))
        return EXIT_FAILURE
    for line in told:
        complain(line)
    replicas = sum(len(service.replicas) for service in saved.services.values())
    print(f"imported {len(saved.services)} services, {replicas} replicas into {config.state_dir}")
    return EXIT_OK


def demo(options: argparse.Namespace) -> int:
    from gatewayd.config.values import parse_address
    from gatewayd.control import spawn
    from gatewayd.control.serve import serve
    from gatewayd.core.model import Log, TcpAddress
    from gatewayd.demo.run import DEFAULT_LISTEN, run_demo
    from gatewayd.net import eventlog

    listen = DEFAULT_LISTEN
    if options.listen is not None:
        try:
            address = parse_address(options.listen)
        except ValueError as error:
            complain(f"--listen: {error}")
            return EXIT_USAGE
        if not isinstance(address, TcpAddress):
            complain("--listen: expected host:port")
            return EXIT_USAGE
        listen = address
    spawn.allow_descriptors()
    eventlog.configure(Log(level="warning"))
    return _in_loop(lambda: run_demo(serve, listen=listen, once=options.once))


def schema(options: argparse.Namespace) -> int:
    from gatewayd.config.schema import json_schema

    print(json.dumps(json_schema(), indent=2))
    return EXIT_OK


def version(options: argparse.Namespace) -> int:
    print(gatewayd.__version__)
    return EXIT_OK


def _in_loop(main: Callable[[], Coroutine[None, None, int]]) -> int:
    try:
        import uvloop
    except ImportError:  # not made for this system; slower, not different
        import asyncio

        return asyncio.run(main())
    return uvloop.run(main())
