"""The command line: argv to role.

Owns: which role a process has. Does not own: the words of the commands (cli.options), what they do
(cli.local, cli.remote and the planes behind them).

Nothing is imported before it is known what is wanted: a worker must not pay for control's needs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

EXIT_OK, EXIT_FAILURE, EXIT_USAGE = 0, 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    args = list(sys.argv[1:] if argv is None else argv)
    if len(args) == 3 and args[0] in ("worker", "bridge") and args[1] == "--channel-fd":
        return _data_plane(args[0], int(args[2]))
    from gatewayd.cli.options import parse

    options = parse(args)
    try:
        code: int = options.run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `gatewayd status | head`: nobody reads on
        sys.stdout = None  # or it is flushed again at exit
        return EXIT_FAILURE
    return code


def complain(text: str) -> None:
    """One line on standard error for each line of `text`."""
    for line in text.splitlines():
        print(f"gatewayd: {line}", file=sys.stderr)


def _data_plane(role: str, channel_fd: int) -> int:
    """What control starts; nobody types this."""
    if role == "worker":
        from gatewayd.proxy.worker import main as worker

        return worker(channel_fd)
    from gatewayd.bridge.main import main as bridge

    return bridge(channel_fd)
