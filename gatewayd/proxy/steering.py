"""Asking a service's router where a request should go, without sending it that way.

Owns: whether the router is asked, how often, what an answer means, the deadline. Does not own:
the question (question), the exchange (course), what routers can decide on (their plug-ins, through
RouterTraits).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from gatewayd.core import reply as replies
from gatewayd.proxy.question import Outcome, Question

if TYPE_CHECKING:
    from gatewayd.core.model import Endpoint
    from gatewayd.proxy.exchange import Exchange
    from gatewayd.proxy.plane import Plane
    from gatewayd.proxy.served import Served
    from gatewayd.proxy.upload import Body

_REMOVAL_S: Final = 0.1  # how long a second question waits for a dead target to leave the router
_HELD_BACK_S: Final = 1.0  # without questions after one that was not answered in time
_ANSWERS: Final = frozenset((Outcome.REFUSED, Outcome.ROUTER_DOWN))  # not of a router that hangs


class Steering:
    """One exchange's questions to its router; at most two. `decided(endpoint)` is called once
    for each, with None when the gateway must choose by itself."""

    __slots__ = (
        "_avoid",
        "_body",
        "_decided",
        "_exchange",
        "_plane",
        "_question",
        "_served",
        "_waiting",
    )

    def __init__(
        self,
        plane: Plane,
        exchange: Exchange,
        served: Served,
        body: Body,
        decided: Callable[[Endpoint | None], None],
    ) -> None:
        self._plane = plane
        self._exchange = exchange
        self._served = served
        self._body = body
        self._decided = decided
        self._question: Question | None = None
        self._waiting: asyncio.Task[None] | None = None  # for the router to lose `_avoid`
        self._avoid = ""  # the replica that was chosen and refused

    def __repr__(self) -> str:
        return f"<Steering {self._question!r}>"

    def ask(self) -> None:
        plane, served, live = self._plane, self._served, self._served.live
        now = plane.loop.time()
        if not plane.asker.up:
            self._alone(Outcome.BRIDGE_DOWN)
        elif self._exchange.length > served.steer_body_limit:
            self._alone(Outcome.BODY_LIMIT)
        elif now < live.ask_after:
            self._alone(Outcome.SKIPPED)
        else:
            if live.ask_after:  # one at a time tries a router that did not answer
                live.ask_after = now + served.steer_timeout
            self._question = Question(
                plane, self._exchange, served, self._body, chosen=self._chosen, failed=self._failed
            )
            self._question.ask()

    def ask_again(self, refused: str) -> None:
        """The replica chosen refuses connections: ask once more, when the router knows."""
        self._let_go()
        if self._avoid:
            self._alone(Outcome.REPLICA_REFUSED)
            return
        self._avoid = refused
        self._waiting = self._plane.spawn(self._ask_after_removal(), self._exchange)

    async def _ask_after_removal(self) -> None:
        await self._plane.changed(_REMOVAL_S)
        self._waiting = None
        self.ask()

    # --- answers

    def _chosen(self, replica: str) -> None:
        self._served.live.ask_after = 0.0
        endpoint = self._served.newest.endpoint(replica)
        if endpoint is None:
            self._let_go()
            self._alone(Outcome.GONE)
        elif replica == self._avoid:
            self._let_go()
            self._alone(Outcome.REPLICA_REFUSED)
        elif not self._takes(endpoint):
            self._let_go()
            self._alone(Outcome.EJECTED)
        else:
            self._count(Outcome.STEERED)
            self._decided(endpoint)

    def _takes(self, endpoint: Endpoint) -> bool:
        """Routers see nothing of the answers, so one that fails at once looks idle to them."""
        served = self._served
        ejections = served.live.ejections
        if not ejections or len(ejections) >= len(served.newest.upstream.endpoints):
            return True  # no other one is better
        return ejections.admits(endpoint.id, self._plane.loop.time())

    def _failed(self, outcome: Outcome) -> None:
        self._question = None
        if outcome in _ANSWERS:
            self._served.live.ask_after = 0.0
        else:
            self._next_may_try()
        self._alone(outcome)

    def _alone(self, outcome: Outcome) -> None:
        self._count(outcome)
        self._decided(None)

    def _next_may_try(self) -> None:
        """If this was the one that tries a silent router: it has learned nothing."""
        live = self._served.live
        if live.ask_after:
            live.ask_after = min(live.ask_after, self._plane.loop.time())

    def _count(self, outcome: Outcome) -> None:
        self._served.meter.steering(outcome.value)

    # --- endings

    def sweep(self, now: float) -> None:
        question = self._question
        if question is None or not question.asking:
            return
        waited = now - question.since
        if question.reading:
            if waited > self._plane.body_idle_timeout:
                self._body.refuse(replies.BODY_TIMEOUT)
        elif waited > self._served.steer_timeout:
            # A router that hangs costs those who asked it, not everybody who comes meanwhile.
            self._served.live.ask_after = now + _HELD_BACK_S
            self._let_go()
            self._alone(Outcome.TIMEOUT)

    def close(self) -> None:
        """The exchange is over, however it ended: so is the router's request."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.cancel()
        if self._question is not None and self._question.asking:
            self._count(Outcome.ABANDONED)
            self._next_may_try()
        self._let_go()

    def _let_go(self) -> None:
        question, self._question = self._question, None
        if question is not None:
            question.close()
