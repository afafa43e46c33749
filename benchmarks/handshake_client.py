"""Full TLS handshakes, one after the other, each on a connection of its own.

Owns: making them; `measure COUNT` on standard input is answered by how many there were. Does not
own: what they cost the other side.
"""

from __future__ import annotations

import sys

from benchmarks.client_protocol import TLS, Request, tell


def shake(request: Request) -> None:
    with (
        request.connect() as plain,
        TLS.wrap_socket(plain, server_hostname=request.headers["Host"]) as secure,
    ):
        if secure.session_reused:
            raise SystemExit("a session was resumed")


def main() -> None:
    request = Request.read()
    shake(request)
    tell(ready=1)
    for line in sys.stdin:
        count = int(line.split()[1])
        for _ in range(count):
            shake(request)
        tell(handshakes=count)


if __name__ == "__main__":
    main()
