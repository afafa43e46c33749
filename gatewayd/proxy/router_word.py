"""What an answer that came through a router says besides itself.

Owns: telling a replica's answer from one that the router or the bridge made, and whether any
replica can have seen the request. Does not own: what follows from it (course), the header names
and error codes of a router (its plug-in, through RouterTraits).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gatewayd.core.retry import Failure
from gatewayd.proxy.hop import FAILURE_FIELD, REPLICA_FIELD

if TYPE_CHECKING:
    from gatewayd.core.model import RouterTraits
    from gatewayd.net.upstream import UpstreamConnection

_UNSENT: Final = frozenset(f.kind.encode() for f in (Failure.CONNECT, Failure.TIMEOUT_CONNECT))


@dataclass(frozen=True, slots=True)
class HopFailure:
    """`unsent`: nothing of the request has reached a replica. `kind` as in the metrics."""

    kind: str
    unsent: bool


@dataclass(frozen=True, slots=True)
class Word:
    """`replica` is empty when the router answered by itself."""

    replica: str
    failure: HopFailure | None


def hear(connection: UpstreamConnection, traits: RouterTraits) -> Word:
    """Read the marks of router and bridge; those of the bridge travel no further."""
    error = connection.head.field(traits.error_header) if traits.error_header else None
    failure = connection.head.field(FAILURE_FIELD.lower())
    replica = (connection.head.field(REPLICA_FIELD.lower()) or b"").decode("latin-1")
    unsent = error is not None and error in traits.unsent_errors
    if failure is not None and connection.status >= 500:
        return Word(replica, HopFailure(failure.decode("latin-1") or "router", failure in _UNSENT))
    if unsent or (error is not None and connection.status >= 500):
        # A router's own words for what failed are not a bounded set; the metrics' kinds are.
        return Word(replica, HopFailure("router", unsent))
    return Word(replica, None)
