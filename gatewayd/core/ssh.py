"""The command line of ssh for a tunnel, and what its lines mean.

Owns: arguments, quoting, the schedule of reconnects. Does not own: running it (control.tunnel),
key files (control.tunnel_files).

Nothing of a hop can become an option, a word of a shell or a percent escape of ssh's. Key texts
never stand here: only the files that hold them.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from gatewayd.core.model import SshHop, SshTunnel
from gatewayd.core.reconcile import backoff

FORWARDS: Final = "gatewayd: ssh forwards"
"""The line that ssh prints when it listens: by a LocalCommand, which it runs after it has set up
its forwards. To connect would do as well, but then the replica is connected to."""

# Neither part may be taken for an option of ssh, nor for more than a word by a shell.
# Users of a directory are written `name@realm` or `REALM\name`.
USER: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_.+@\\-]*[A-Za-z0-9_.+-])?"
HOST: Final = r"[A-Za-z0-9_\[:][A-Za-z0-9_.:%\]-]*"

CONNECT_TIMEOUT_S: Final = 10

# Hosts of replicas are made for a run and their keys are nobody's to know: host keys are not
# checked, as every control plane of this kind has it (THREAT_MODEL.md).
_OPTIONS: Final = (
    "BatchMode=yes",
    "PreferredAuthentications=publickey",
    "StrictHostKeyChecking=no",
    "UserKnownHostsFile=/dev/null",
    "GlobalKnownHostsFile=/dev/null",
    "UpdateHostKeys=no",
    "LogLevel=INFO",  # below it ssh does not say why a jump could not connect
    f"ConnectTimeout={CONNECT_TIMEOUT_S}",
    # A peer that is gone is noticed within 45 s.
    "ServerAliveInterval=15",
    "ServerAliveCountMax=3",
)
_FORWARD_OPTIONS: Final = (
    "ExitOnForwardFailure=yes",
    "StreamLocalBindUnlink=yes",
    "StreamLocalBindMask=0177",
    "PermitLocalCommand=yes",
    f"LocalCommand=echo '{FORWARDS}'",
)
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 30.0
STABLE_AFTER_S: Final = 30.0

CHATTER: Final = re.compile(r"^(Warning: Permanently added |Killed by signal |\*\* )")
"""What each connection says, and nobody needs to know."""
_LAST_LINES: Final = 6  # a server may print a page before it refuses
_LONGEST_LINE: Final = 300
_CHANNEL: Final = re.compile(r"channel \d+: ")
_MAY_PASS: Final = re.compile(
    r"refused|reset|timed out|closed by|No route to host|unreachable|Temporary failure"
)
_STAYS: Final = re.compile(r"Permission denied|prohibited|Load key|Name or service not known")


@dataclass(frozen=True, slots=True)
class Identities:
    """Which file proves us to each hop; None: whatever ssh finds by itself."""

    files: tuple[str | None, ...]


def command(tunnel: SshTunnel, socket: str, identities: Identities) -> tuple[str, ...]:
    """An ssh that forwards the Unix socket `socket` to the replica's port."""
    *jumps, last = zip(tunnel.hops, identities.files, strict=True)
    forward = f"{_field(socket)}:localhost:{tunnel.app_port}"
    more = [word for option in _FORWARD_OPTIONS for word in ("-o", option)]
    return _ssh(*last, jumps, ["-N", *more, "-L", forward])


def _ssh(
    hop: SshHop,
    identity: str | None,
    jumps: Sequence[tuple[SshHop, str | None]],
    more: Iterable[str],
) -> tuple[str, ...]:
    words = ["ssh", "-F", "none", "-T", *more]
    for option in _OPTIONS:
        words += ("-o", option)
    if identity is not None:
        words += ("-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none")
        words += ("-i", _literal(identity))
    user, host = _split(hop.destination)
    if jumps:
        *before, (jump, its_identity) = jumps
        through = _ssh(jump, its_identity, before, ["-W", f"[{host}]:{hop.port}"])
        words += ("-o", f"ProxyCommand={_literal(shlex.join(through))}")
    return (*words, "-p", str(hop.port), "-l", user, "--", host)


def _split(destination: str) -> tuple[str, str]:
    user, _, host = destination.rpartition("@")
    return user, host.removeprefix("[").removesuffix("]")


def _literal(text: str) -> str:
    """ssh expands percent signs here."""
    return text.replace("%", "%%")


def _field(path: str) -> str:
    """A path as a part of a forward, where colons divide."""
    return re.sub(r"([\\:])", r"\\\1", _literal(path))


def words_of(lines: Iterable[str]) -> str:
    """What ssh said, in one line."""
    said = list(dict.fromkeys(line[:_LONGEST_LINE] for line in lines if line != FORWARDS))
    return "; ".join(said[-_LAST_LINES:])


def may_pass(words: str) -> bool:
    """Whether what kept ssh from connecting may be over in a moment, by its own words."""
    return _MAY_PASS.search(words) is not None and _STAYS.search(words) is None


def channel_fault(line: str) -> str:
    """What ssh says of a request that it cannot forward, without the number that it counts them
    by; of another line nothing."""
    return _CHANNEL.sub("", line) if _CHANNEL.match(line) else ""


def pause(attempt: int, chance: float) -> float:
    """Seconds before an attempt, numbered from 0 since the tunnel was last up for long: at once
    first, then doubling. `chance` in 0..1 takes up to half away: a host that comes back is not met
    by all of its tunnels in one moment."""
    if attempt == 0:
        return 0.0
    return backoff(attempt - 1, FIRST_PAUSE_S, LONGEST_PAUSE_S) * (0.5 + chance / 2)


def describe(tunnel: SshTunnel) -> str:
    """Where a tunnel goes, for people and without keys."""
    hops = ", ".join(f"{hop.destination}:{hop.port}" for hop in tunnel.hops)
    return f"ssh {hops} to port {tunnel.app_port}"
