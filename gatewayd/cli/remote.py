"""Commands that change or show a running gateway.

Owns: their calls, lines and exit codes. Does not own: the client (cli.admin), tables (cli.table).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, urlsplit

from gatewayd.cli import EXIT_FAILURE, EXIT_OK, EXIT_USAGE, complain

if TYPE_CHECKING:
    from gatewayd.cli.admin import Admin

_DRAIN_GRACE_S = 30.0


def status(options: argparse.Namespace) -> int:
    def show(admin: Admin) -> None:
        answer = admin.get("/api/status")
        if options.json:
            print(json.dumps(answer, indent=2))
        else:
            from gatewayd.cli.table import render

            print(render(answer), end="")

    return with_admin(options, show)


def reload(options: argparse.Namespace) -> int:
    def ask(admin: Admin) -> None:
        answer = admin.post(f"/api/reload?dry_run={int(options.dry_run)}")
        for change in answer["changes"]:
            print(change)
        if not answer["changes"]:
            print("nothing changed")

    # A refused configuration is exit 2, as with `check`; the old one stays.
    return with_admin(options, ask, refused=EXIT_USAGE)


def service_add(options: argparse.Namespace) -> int:
    body: dict[str, Any] = {"run_name": options.name}
    if options.domain:
        body["domain"] = options.domain
    if options.model is not None:
        body["model"] = options.model
    if options.router is not None:
        body["router"] = None if options.router == "none" else options.router
    if options.no_auth:
        body["auth"] = False
    return _change(options, "services/register", body, f"{options.name} added")


def service_remove(options: argparse.Namespace) -> int:
    path = f"services/{_part(options.name)}/unregister"
    return _change(options, path, None, f"{options.name} removed")


def replica_add(options: argparse.Namespace) -> int:
    try:
        body = _replica_body(options.address)
    except ValueError as error:
        complain(f"{options.address}: {error}")
        return EXIT_USAGE
    if options.id is not None:
        body["id"] = options.id
    path = f"services/{_part(options.service)}/replicas/register"

    def ask(admin: Admin) -> None:
        answer = admin.post(f"{_base(options, admin)}/{path}", body)
        print(f"replica {answer['id']} added to {options.service}")

    return with_admin(options, ask)


def _replica_body(address: str) -> dict[str, Any]:
    """ValueError for an ssh address that is none; the rest is the gateway's to judge."""
    if not address.startswith("ssh://"):
        return {"url": address} if "://" in address else {"socket": address.removeprefix("unix:")}
    from gatewayd.config.values import replica_id

    parts = urlsplit(address)
    query = parse_qs(parts.query, strict_parsing=bool(parts.query))
    if parts.username is None or parts.hostname is None or query.keys() != {"app_port"}:
        raise ValueError("expected ssh://user@host:port?app_port=8000")
    return {
        "id": replica_id(address),
        "ssh_host": f"{parts.username}@{parts.hostname}",
        "ssh_port": parts.port or 22,
        "app_port": int(query["app_port"][0]),
    }


def replica_drain(options: argparse.Namespace) -> int:
    from gatewayd.config.values import parse_duration

    try:
        timeout = parse_duration(options.timeout)
    except ValueError as error:
        complain(f"--timeout: {error}")
        return EXIT_USAGE

    def ask(admin: Admin) -> None:
        path = f"{_base(options, admin)}/services/{_part(options.service)}/replicas"
        answer = admin.post(
            f"{path}/{_part(options.id)}/drain",
            {"timeout": timeout},
            timeout=timeout + _DRAIN_GRACE_S,
        )
        if answer["drained"]:
            print(f"{options.id} drained and removed from {options.service}")
        else:
            print(
                f"{options.id} removed from {options.service}; "
                f"{answer['running']} requests still run on it"
            )

    return with_admin(options, ask)


def replica_remove(options: argparse.Namespace) -> int:
    path = f"services/{_part(options.service)}/replicas/{_part(options.id)}/unregister"
    return _change(options, path, None, f"{options.id} removed from {options.service}")


def _change(options: argparse.Namespace, path: str, body: object, done: str) -> int:
    def ask(admin: Admin) -> None:
        admin.post(f"{_base(options, admin)}/{path}", body)
        print(done)

    return with_admin(options, ask)


def _base(options: argparse.Namespace, admin: Admin) -> str:
    project = options.project or admin.get("/api/status")["project"]
    return f"/api/registry/{_part(project)}"


def _part(text: str) -> str:
    return quote(text, safe="")


def with_admin(
    options: argparse.Namespace, ask: Callable[[Admin], None], *, refused: int = EXIT_FAILURE
) -> int:
    from gatewayd.cli.admin import Admin, AdminError, admin_address

    try:
        ask(Admin(admin_address(options)))
    except AdminError as error:
        complain(str(error))
        return EXIT_FAILURE if error.status is None else refused
    return EXIT_OK
