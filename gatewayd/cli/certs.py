"""`gatewayd certs`: certificates of a running gateway, as an operator sees and changes them.

Owns: its calls and lines. Does not own: the client (cli.admin), how certificates are got (control).
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from gatewayd.cli.remote import with_admin

if TYPE_CHECKING:
    from gatewayd.cli.admin import Admin

# With another certificate before the old one is revoked.
_TIMEOUT_S = 240.0


def list_(options: argparse.Namespace) -> int:
    def show(admin: Admin) -> None:
        answer = admin.get("/api/certificates")
        if options.json:
            print(json.dumps(answer, indent=2))
            return
        from gatewayd.cli.table import render_certificates

        print(render_certificates(answer) if answer else "no certificates\n", end="")

    return with_admin(options, show)


def renew(options: argparse.Namespace) -> int:
    def ask(admin: Admin) -> None:
        admin.post("/api/certificates/renew", {"domain": options.domain}, timeout=_TIMEOUT_S)
        print(f"a new certificate for {options.domain} is served")

    return with_admin(options, ask)


def revoke(options: argparse.Namespace) -> int:
    def ask(admin: Admin) -> None:
        body = {"domain": options.domain, "reason": options.reason}
        answer = admin.post("/api/certificates/revoke", body, timeout=_TIMEOUT_S)
        now = "another one is served" if answer["another"] else "it is not served any more"
        print(f"the certificate of {options.domain} is revoked; {now}")

    return with_admin(options, ask)
