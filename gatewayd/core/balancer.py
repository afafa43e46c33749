"""Which endpoint a request goes to, and which are left out for a while after failures.

Owns: the choice among an upstream's endpoints, passive health. Does not own: the counts of
requests in flight (net.loads), what counts as a failure and whether to repeat (core.retry,
proxy.forward).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from gatewayd.core.model import Balance, Endpoint

FIRST_HOLD_S: Final = 1.0  # doubles with each failed trial
MAX_HOLD_S: Final = 30.0
# An address that refuses answers at once and costs a client nothing (the request moves on), so it
# is asked again soon and at a steady pace: a replica that comes back is used within a second.
REFUSED_HOLD_S: Final = 0.5

_NONE: Final[frozenset[str]] = frozenset()


class Loads(Protocol):
    def loads(self, indexes: Iterable[int]) -> list[int]:
        """Requests in flight to each endpoint index, over all processes."""
        ...


@dataclass(slots=True)
class _Ejected:
    hold_s: float  # how long the next trial is away
    due: float
    on_trial: bool = False  # a request was let through since the last failure


class Ejections:
    """The endpoints of one upstream that failed lately, as this process saw it.

    An ejected endpoint takes no requests until it is due; then one request tries it, and after
    each further hold without news one more. A success ends it, a failed trial doubles the hold.
    False while nothing is ejected. Times are seconds of any monotonic clock.
    """

    __slots__ = ("out",)

    def __init__(self) -> None:
        self.out: dict[str, _Ejected] = {}

    def __len__(self) -> int:
        return len(self.out)

    def __contains__(self, endpoint_id: str) -> bool:
        return endpoint_id in self.out

    def failed(self, endpoint_id: str, now: float, *, refused: bool = False) -> None:
        """An attempt failed for a reason that speaks against the endpoint (an idle connection
        that closed does not). `refused`: no connection was made, and it took no time."""
        out = self.out.get(endpoint_id)
        if out is None:
            out = self.out[endpoint_id] = _Ejected(FIRST_HOLD_S, now)
        elif out.on_trial and not refused:
            # Only trials count: a crash fails all that were in flight, and is one failure.
            out.hold_s = min(MAX_HOLD_S, out.hold_s * 2)
        out.on_trial = False
        out.due = now + (REFUSED_HOLD_S if refused else out.hold_s)

    def succeeded(self, endpoint_id: str) -> None:
        """The endpoint began an answer: it takes its share again."""
        self.out.pop(endpoint_id, None)

    def retain(self, endpoint_ids: Collection[str]) -> None:
        """Forget all but these: the upstream has changed."""
        for gone in self.out.keys() - set(endpoint_ids):
            del self.out[gone]

    def narrow(
        self, endpoints: tuple[Endpoint, ...], tried: frozenset[str], now: float
    ) -> tuple[Endpoint, ...]:
        """The endpoints to choose from, best kind first: one that is due for its trial (not for
        a request that has failed already), sound ones, else the ejected one due soonest.
        Within each kind what was `tried` comes last. Empty only when `endpoints` is."""
        out = self.out
        sound = tuple(e for e in endpoints if e.id not in out)
        if len(sound) < len(endpoints) and (not sound or not tried):
            ejected = [e for e in endpoints if e.id in out and e.id not in tried]
            ejected = ejected or [e for e in endpoints if e.id in out]
            soonest = min(ejected, key=lambda e: out[e.id].due)
            state = out[soonest.id]
            if state.due <= now:
                state.on_trial = True
                state.due = now + state.hold_s
                return (soonest,)
            if not sound:
                return (soonest,)
        return tuple(e for e in sound if e.id not in tried) or sound

    def admits(self, endpoint_id: str, now: float) -> bool:
        """Whether a request may go where somebody else has chosen: to a sound endpoint, or to one
        that is due, as its trial."""
        state = self.out.get(endpoint_id)
        if state is None:
            return True
        if state.due > now:
            return False
        state.on_trial = True
        state.due = now + state.hold_s
        return True

    def __repr__(self) -> str:
        return f"<Ejections {sorted(self.out)}>"


def pick(
    endpoints: tuple[Endpoint, ...],
    loads: Loads,
    *,
    balance: Balance,
    salt: int,
    ejections: Ejections,
    now: float,
    tried: frozenset[str] = _NONE,
) -> Endpoint | None:
    """The endpoint for one attempt; None only when there are no endpoints.

    `tried` holds ids that failed this request. `salt` is the chance in the choice: the upstream's
    own counter for round_robin, its counter or random bits for least_requests (it shares out
    ties), random bits for random.
    """
    if ejections.out or tried:
        endpoints = ejections.narrow(endpoints, tried, now)
    count = len(endpoints)
    if count < 2:
        return endpoints[0] if count else None
    if balance != "least_requests":
        return endpoints[salt % count]
    in_flight = loads.loads([endpoint.index for endpoint in endpoints])
    least = min(in_flight)
    at = in_flight.index(least)
    # Among the ties only: the next after a busy one would else get that one's share as well.
    for _ in range(salt % in_flight.count(least)):
        at = in_flight.index(least, at + 1)
    return endpoints[at]
