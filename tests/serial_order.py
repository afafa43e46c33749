"""Whether some serial order explains what many clients were answered at the same time.

    history = [Call(began, ended, op, answer), ...]
    unexplained(history, state, step) -> None, or the call that no order explains

`step(state, op, answer)` is the state after `op` when that says `answer` in that state, else
None. An order may swap calls that ran at the same time, and no others. All orders are tried, call
by call as they end; refusals, which change nothing, take their turn as soon as they are true.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Call:
    began: float
    ended: float
    op: tuple[str, ...]
    answer: str


Step = Callable[[Any, tuple[str, ...], str], Any]
_World = tuple[Hashable, frozenset[int]]  # the state, and which of the running calls it has had


def unexplained(history: Iterable[Call], state: Hashable, step: Step) -> Call | None:
    calls = list(history)
    events = sorted(
        [(call.began, 0, n) for n, call in enumerate(calls)]
        + [(call.ended, 1, n) for n, call in enumerate(calls)]
    )
    running: set[int] = set()
    worlds: set[_World] = {(state, frozenset())}
    for _, ends, n in events:
        if not ends:
            running.add(n)
            continue
        worlds = {(state, had - {n}) for state, had in _reach(worlds, n, running, calls, step)}
        if not worlds:
            return calls[n]
        running.remove(n)
    return None


def _reach(
    worlds: set[_World], wanted: int, running: set[int], calls: list[Call], step: Step
) -> set[_World]:
    """Every way on that has had `wanted`, and no call more than it takes."""
    found: set[_World] = set()
    seen: set[_World] = set()
    ahead = list(worlds)
    while ahead:
        state, had = ahead.pop()
        quiet = {n for n in running - had if step(state, calls[n].op, calls[n].answer) == state}
        world = (state, had | quiet)
        if world in seen:
            continue
        seen.add(world)
        if wanted in world[1]:
            found.add(world)
            continue
        for n in running - world[1]:
            after = step(state, calls[n].op, calls[n].answer)
            if after is not None:
                ahead.append((after, world[1] | {n}))
    return found
