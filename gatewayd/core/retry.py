"""Whether a failed attempt may be repeated, and what the client is told when it may not.

Owns: the decision and the kinds of failure. Does not own: attempts (proxy.forward), the choice
of the next endpoint and ejection (core.balancer).

A repeat is allowed only while nothing of the request can have had an effect (RFC 9110, 9.2.2).
A duplicated POST costs a GPU and may charge somebody twice; a 502 costs one more call.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

MAX_ATTEMPTS: Final = 3
IDEMPOTENT: Final = frozenset(("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE"))


class Failure(Enum):
    """How an attempt ended without a whole answer. The value is the metrics' `kind`."""

    CONNECT = "connect"  # refused, no such socket, no route
    TIMEOUT_CONNECT = "connect_timeout"
    CLOSED = "closed"  # by the peer, before the first byte of an answer
    BROKEN = "broken"  # an answer that is none: bad head or framing
    TIMEOUT_SEND = "send_timeout"  # it took no byte of the request's body
    TIMEOUT_FIRST_BYTE = "first_byte_timeout"
    TIMEOUT_IDLE = "idle_timeout"  # in the middle of an answer
    TIMEOUT_TOTAL = "total_timeout"
    RESET_MIDSTREAM = "reset"  # the answer broke off

    @property
    def kind(self) -> str:
        return self._value_


class Sent(Enum):
    """How much of the request was written to the connection that failed."""

    NOTHING = 0
    SOME = 1
    ALL = 2
    UNREAD = 3  # all of it, and the kernel tells that the peer has not read it to its end


@dataclass(frozen=True, slots=True)
class Retry:
    """Try again. `avoid_endpoint`: on another one. `fresh`: on a new connection, because the
    pools of several replicas may hold equally stale ones."""

    avoid_endpoint: bool
    fresh: bool


@dataclass(frozen=True, slots=True)
class Fail:
    status: int
    code: str


UPSTREAM_ERROR: Final = Fail(502, "upstream_error")
UPSTREAM_TIMEOUT: Final = Fail(504, "upstream_timeout")
NO_REPLICA: Final = Fail(503, "no_ready_replica")

_TIMEOUTS: Final = frozenset(
    (
        Failure.TIMEOUT_CONNECT,
        Failure.TIMEOUT_SEND,
        Failure.TIMEOUT_FIRST_BYTE,
        Failure.TIMEOUT_IDLE,
        Failure.TIMEOUT_TOTAL,
    )
)


def decide(
    *,
    attempt: int,
    failure: Failure,
    sent: Sent,
    idempotent: bool,
    reused: bool,
    endpoints: int,
) -> Retry | Fail:
    """`attempt` is how many were made, `endpoints` how many the upstream has; `reused`: the
    connection had carried an exchange before. Fail after the first byte of an answer means that
    the client's connection must be cut; its status is for the access log."""
    if not endpoints:
        return NO_REPLICA
    if attempt < _attempts(failure, endpoints) and _without_effect(
        failure, sent, idempotent=idempotent, reused=reused
    ):
        return Retry(avoid_endpoint=endpoints > 1, fresh=failure is Failure.CLOSED)
    return UPSTREAM_TIMEOUT if failure in _TIMEOUTS else UPSTREAM_ERROR


def _attempts(failure: Failure, endpoints: int) -> int:
    # A refusal is repeated on a lone replica too (it may just be restarting, and asking costs
    # nothing); a connect that ran into its timeout only elsewhere, or the client waits twice.
    others = endpoints if failure is Failure.TIMEOUT_CONNECT else endpoints + 1
    return min(MAX_ATTEMPTS, others)


def _without_effect(failure: Failure, sent: Sent, *, idempotent: bool, reused: bool) -> bool:
    if failure in (Failure.CONNECT, Failure.TIMEOUT_CONNECT):
        return sent is Sent.NOTHING
    if failure is Failure.CLOSED:
        # An idle connection closes as the request leaves: the peer has most likely not read it.
        # On a new connection it has, and closing was its answer.
        return sent in (Sent.NOTHING, Sent.UNREAD) or (idempotent and reused)
    return False
