"""`gatewayd install --dstack`: in the place of a dstack gateway on its machine, and back.

Owns: the order of the steps. Does not own: the files (cli.install_files), how a step is done
(cli.install_steps).
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Final

from gatewayd.cli import EXIT_FAILURE, EXIT_OK, EXIT_USAGE, complain
from gatewayd.cli.install_files import (
    CONFIG,
    CONFIG_PATH,
    DROP_IN,
    DROP_IN_PATH,
    DSTACK_DIR,
    DSTACK_UNIT,
    DSTACK_UNIT_PATH,
    UNIT_PATH,
    USER,
    unit,
)
from gatewayd.cli.install_steps import InstallError, Machine

# They hold ports 80 and 443, or would start again who does: certbot renews by way of nginx.
_REPLACED: Final = ("nginx.service", "certbot.timer", "snap.certbot.renew.timer")


def install(options: argparse.Namespace) -> int:
    machine = Machine(Path(options.root), options.dry_run, print)
    if machine.real and os.geteuid() != 0 and not options.dry_run:
        complain("this changes the system: run it as root, or with --dry-run or --root DIR")
        return EXIT_USAGE
    try:
        if options.uninstall:
            _uninstall(machine)
        else:
            _install(machine, os.path.join(sys.prefix, "bin", "gatewayd"))
    except InstallError as error:
        complain(str(error))
        return EXIT_FAILURE
    return EXIT_OK


def _install(machine: Machine, command: str) -> None:
    """May be repeated."""
    machine.write(CONFIG_PATH, CONFIG, keep=True)
    machine.write(UNIT_PATH, unit(command))
    machine.write(DROP_IN_PATH, DROP_IN)
    machine.write(DSTACK_UNIT_PATH, DSTACK_UNIT, keep=True)
    machine.write(f"{DSTACK_DIR}/version", "blue\n", keep=True, owner=USER)
    for venv in ("blue", "green"):  # where an update of dstack looks for pip
        if not machine.exists(f"{DSTACK_DIR}/{venv}/bin/pip"):
            machine.run("install", "-d", "-o", USER, "-g", USER, DSTACK_DIR)
            machine.run(
                "runuser", "-u", USER, "--", "python3", "-m", "venv", f"{DSTACK_DIR}/{venv}"
            )
    machine.run("systemctl", "daemon-reload")
    # The old one first: what it has registered is on disk then, and its ports are free.
    machine.run("systemctl", "stop", "dstack.gateway.service")
    for unit_name in _REPLACED:
        machine.run("systemctl", "disable", "--now", unit_name, may_fail=True)
    machine.run("systemctl", "enable", "--now", "gatewayd.service")
    machine.run("systemctl", "enable", "--now", "dstack.gateway.service")


def _uninstall(machine: Machine) -> None:
    machine.run("systemctl", "disable", "--now", "gatewayd.service", may_fail=True)
    machine.run("systemctl", "stop", "dstack.gateway.service", may_fail=True)
    for path in (DROP_IN_PATH, UNIT_PATH, DSTACK_UNIT_PATH):
        machine.remove(path)
    machine.run("systemctl", "daemon-reload")
    for unit_name in _REPLACED:
        machine.run("systemctl", "enable", "--now", unit_name, may_fail=True)
    if machine.exists(DSTACK_UNIT_PATH):
        machine.run("systemctl", "enable", "--now", "dstack.gateway.service")
    machine.say(f"{CONFIG_PATH} and /var/lib/gatewayd are left for you to remove")
