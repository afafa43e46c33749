"""The words and options of every command.

Owns: the parser, so also usage errors (exit 2). Does not own: what a command does.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from gatewayd.cli import certs, install, local, remote, upgrade

Run = Callable[[argparse.Namespace], int]


def parse(args: Sequence[str]) -> argparse.Namespace:
    """`run` of the result is the command's function."""
    parser = argparse.ArgumentParser(
        prog="gatewayd", description="A reverse proxy in front of language-model replicas."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, help: str, run: Run) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")
        sub.set_defaults(run=run)
        return sub

    run = command("run", "run the gateway in the foreground", local.run)
    run.add_argument("-c", "--config", required=True, metavar="FILE")
    check = command("check", "say everything that is wrong with a file", local.check)
    check.add_argument("-c", "--config", required=True, metavar="FILE")
    check.add_argument(
        "--print", action="store_true", help="print the effective configuration, secrets masked"
    )
    demo = command("demo", "run a whole gateway with two demo replicas", local.demo)
    demo.add_argument("--listen", metavar="HOST:PORT", help="default: 127.0.0.1:8080")
    demo.add_argument("--once", action="store_true", help="stop after one answer was shown")
    importing = command(
        "import", "take over the state of another gateway, before a first start", local.import_state
    )
    importing.add_argument("file", help="its state-v2.json, or the older state.json")
    importing.add_argument("-c", "--config", required=True, metavar="FILE")
    importing.add_argument(
        "--keys", metavar="DIR", help="ssh keys by project; default: import_keys"
    )
    command("schema", "print the JSON Schema of the configuration file", local.schema)
    command("version", "print the version", local.version)

    status = command("status", "show services, replicas, routers and workers", remote.status)
    status.add_argument("--json", action="store_true", help="as it comes from /api/status")
    _add_admin(status)
    reload = command("reload", "read the file again and apply the difference", remote.reload)
    reload.add_argument("--dry-run", action="store_true", help="only print the difference")
    _add_admin(reload)
    installing = command("install", "take the place of a dstack gateway", install.install)
    installing.add_argument("--dstack", action="store_true", required=True, help="of a dstack one")
    installing.add_argument("--uninstall", action="store_true", help="put back what was there")
    installing.add_argument("--dry-run", action="store_true", help="only print the steps")
    installing.add_argument(
        "--root", default="/", metavar="DIR", help="write below another root, and run nothing"
    )
    upgrading = command(
        "upgrade", "have the running gateway replaced by what is installed now", upgrade.upgrade
    )
    _add_admin(upgrading)
    _add_service(commands.add_parser("service", help="add or remove a service"))
    _add_replica(commands.add_parser("replica", help="add, drain or remove a replica"))
    _add_certs(commands.add_parser("certs", help="show, renew or revoke certificates"))
    return parser.parse_args(args)


def _add_service(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    add = actions.add_parser("add", help="register a service")
    add.set_defaults(run=remote.service_add)
    add.add_argument("name")
    add.add_argument(
        "--domain",
        action="append",
        default=[],
        help="may be repeated; default: NAME.<domain of the gateway>",
    )
    add.add_argument("--model", help="the OpenAI-compatible model it serves")
    add.add_argument("--router", metavar="TYPE", help="`none`: no router; default: the gateway's")
    add.add_argument("--no-auth", action="store_true", help="serve whoever asks")
    remove = actions.add_parser("remove", help="unregister a service; what runs ends whole")
    remove.set_defaults(run=remote.service_remove)
    remove.add_argument("name")
    for sub in (add, remove):
        _add_project(sub)


def _add_replica(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    add = actions.add_parser("add", help="register a replica")
    add.set_defaults(run=remote.replica_add)
    add.add_argument("service")
    add.add_argument(
        "address",
        help="unix:/path, http://host:port or ssh://user@host:port?app_port=8000",
    )
    add.add_argument("--id", help="default: a short stable hash of the address")
    drain = actions.add_parser(
        "drain", help="no new requests; wait for those that run, then remove the replica"
    )
    drain.set_defaults(run=remote.replica_drain)
    drain.add_argument("service")
    drain.add_argument("id")
    drain.add_argument("--timeout", default="30s", help="how long to wait, for example 10m")
    remove = actions.add_parser("remove", help="no new requests, at once; what runs ends whole")
    remove.set_defaults(run=remote.replica_remove)
    remove.add_argument("service")
    remove.add_argument("id")
    for sub in (add, drain, remove):
        _add_project(sub)


def _add_certs(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    show = actions.add_parser("list", help="which there are, until when, and what is wrong")
    show.set_defaults(run=certs.list_)
    show.add_argument("--json", action="store_true", help="as it comes from /api/certificates")
    renew = actions.add_parser("renew", help="get a new one now, whether it is due or not")
    renew.set_defaults(run=certs.renew)
    renew.add_argument("domain")
    revoke = actions.add_parser("revoke", help="have the authority revoke it, and get another one")
    revoke.set_defaults(run=certs.revoke)
    revoke.add_argument("domain")
    revoke.add_argument("--reason", default="unspecified", help="for example key-compromise")
    for sub in (show, renew, revoke):
        _add_admin(sub)


def _add_project(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--project", help="default: the project of the gateway's file")
    _add_admin(parser)


def _add_admin(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--admin", metavar="ADDR", help="the admin address; default: $GATEWAYD_ADMIN, or FILE's"
    )
    parser.add_argument(
        "-c", "--config", metavar="FILE", help="the gateway's file, to find its admin address"
    )
