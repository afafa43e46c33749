"""Desired against observed: what to ask for next, and how long to wait before trying again.

Owns: `plan`, the level-triggered difference; `backoff`. Does not own: asking (a router plug-in),
when it is asked (control.router_host), starting processes (net.process).

`plan` never trusts that one call worked. It looks at what is there, says what is missing and
what is too much, and is called again until there is nothing left to say.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

# A router works on few jobs at a time (ten, in the one measured), and ten registrations of
# unreachable targets froze all others. Four leave room for removals.
MAX_ADDS = 4

# How long a registration that was asked for may stay invisible before it is asked for again.
PATIENCE_S = 5.0


def backoff(attempt: int, first: float, limit: float) -> float:
    """Seconds for the given attempt, counted from 0: doubling from `first` up to `limit`."""
    # Beyond 2**64 every limit is reached, and a float overflows near 2**1024.
    return min(limit, first * 2.0 ** min(max(attempt, 0), 64))


@dataclass(frozen=True, slots=True)
class ObservedTarget:
    """One entry of the list that the other side keeps. `id` is its name for it."""

    id: str
    url: str
    healthy: bool = True


@dataclass(frozen=True, slots=True)
class Asked:
    """A registration that was asked for and has not been seen done."""

    at: float  # monotonic seconds
    tries: int = 1


@dataclass(frozen=True, slots=True)
class Actions:
    """`add` are URLs, `remove` are the other side's ids; `waiting` URLs may yet appear."""

    add: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    waiting: frozenset[str] = frozenset()

    @property
    def settled(self) -> bool:
        return not (self.add or self.remove or self.waiting)


def plan(
    desired: Collection[str],
    observed: Collection[ObservedTarget],
    asked: Mapping[str, Asked],
    now: float,
    *,
    max_adds: int = MAX_ADDS,
    patience: float = PATIENCE_S,
) -> Actions:
    """The next step from `observed` towards exactly the URLs of `desired`.

    Additions come in the order of `desired`, those that failed before after those that did not,
    and no more than `max_adds` are under way at once. Whatever is observed and not desired goes:
    a registration that was given up may still have come true. A target that stays unhealthy
    longer than `patience` is removed, and added again once it is seen gone.
    """
    wanted = dict.fromkeys(desired)
    waiting = {url for url, ask in asked.items() if now - ask.at < patience}
    remove: list[str] = []
    present: set[str] = set()
    ready: set[str] = set()
    for target in sorted(observed, key=lambda target: not target.healthy):
        twice = target.url in present
        present.add(target.url)
        if target.url not in wanted or twice:
            remove.append(target.id)
        elif target.healthy:
            ready.add(target.url)
        elif target.url not in waiting:
            remove.append(target.id)
    # A ghost is removed above as soon as it is seen, so only the unseen are waited for.
    waiting -= ready | {url for url in present if url not in wanted}
    missing = [url for url in wanted if url not in present and url not in waiting]
    missing.sort(key=lambda url: asked[url].tries if url in asked else 0)
    room = max(0, max_adds - len(waiting))
    return Actions(tuple(missing[:room]), tuple(remove), frozenset(waiting))
