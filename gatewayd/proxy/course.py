"""Where an exchange goes, attempt by attempt: through its router, where the router says, or where
the gateway itself chooses.

Owns: the way (`Exchange.via`), what was tried, what follows a failure. Does not own: the attempt
itself (forward), asking a router (steering), whether a repeat is allowed (core.retry).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gatewayd.core import reply as replies
from gatewayd.core.reply import LocalReply
from gatewayd.core.retry import IDEMPOTENT, Fail, Failure, Sent, decide
from gatewayd.proxy.router_word import hear
from gatewayd.proxy.steering import Steering

if TYPE_CHECKING:
    from gatewayd.core.model import Endpoint
    from gatewayd.net.upstream import UpstreamConnection
    from gatewayd.proxy.exchange import Exchange
    from gatewayd.proxy.plane import Plane
    from gatewayd.proxy.served import Served
    from gatewayd.proxy.upload import Body


class Course:
    """`go()` is called whenever the next attempt can be made; it asks `choose` for the endpoint.

    `to_router`: the router carries the bytes of the next attempt. `fresh`: the next attempt must
    not trust a pooled connection.
    """

    _steering: Steering | None = None
    _chosen: Endpoint | None = None  # by the router, for the next attempt
    _tried: frozenset[str] = frozenset()
    fresh = False

    def __init__(
        self,
        plane: Plane,
        exchange: Exchange,
        served: Served,
        body: Body,
        go: Callable[[], None],
    ) -> None:
        self._plane = plane
        self._exchange = exchange
        self._served = served
        self._body = body
        self._go = go
        self.to_router = served.router is not None

    def __repr__(self) -> str:
        return f"<Course {self._exchange.via}, tried {sorted(self._tried)}>"

    def begin(self) -> None:
        exchange, served = self._exchange, self._served
        if served.steer_paths and served.steers(exchange):
            self.to_router = False
            self._steering = Steering(self._plane, exchange, served, self._body, self._decided)
            self._steering.ask()
        else:
            exchange.via = "through" if self.to_router else "direct"
            self._go()

    def _decided(self, endpoint: Endpoint | None) -> None:
        """The router has chosen, or could not: then the choice is ours."""
        self._chosen = endpoint
        self._exchange.via = "fallback" if endpoint is None else "steered"
        self._go()

    def choose(self) -> Endpoint | None:
        """The endpoint of the next attempt; None when the service has none."""
        if self.to_router:
            return self._served.router
        if self._chosen is not None:
            chosen, self._chosen = self._chosen, None
            return chosen
        served = self._served if self._steering is None else self._served.newest
        return served.choose(self._plane, self._tried)

    def failed(
        self, endpoint: Endpoint, failure: Failure, sent: Sent, *, reused: bool
    ) -> LocalReply | None:
        """After an attempt without an answer: None when the exchange goes on, else its answer."""
        served = self._served
        exchange = self._exchange
        served.meter.upstream_error(endpoint.replica, failure.kind)
        if self.to_router:
            return self._past_router() if sent is Sent.NOTHING else reply_of(failure)
        if failure is Failure.CONNECT:
            self._plane.refused(served.key, endpoint.replica)
        if not reused:
            served.live.ejections.failed(
                endpoint.id, self._plane.loop.time(), refused=failure is Failure.CONNECT
            )
        decision = decide(
            attempt=exchange.attempts,
            failure=failure,
            sent=sent,
            idempotent=exchange.method in IDEMPOTENT,
            reused=reused,
            endpoints=len(served.upstream.endpoints),
        )
        if isinstance(decision, Fail) or not self._body.repeatable:
            return reply_of(failure)
        served.meter.retried()
        self.fresh = decision.fresh
        if decision.avoid_endpoint:
            self._tried |= {endpoint.id}
        if exchange.via == "steered" and self._steering is not None and sent is Sent.NOTHING:
            self._steering.ask_again(endpoint.id)
        else:
            self._go()
        return None

    def judge(self, connection: UpstreamConnection) -> HopVerdict | None:
        """What an answer that came through the router is, if not a replica's; None if it is."""
        exchange = self._exchange
        said = hear(connection, self._served.traits)
        if said.replica:
            exchange.replica = said.replica
        if said.failure is None:
            return None
        self._served.meter.upstream_error(exchange.replica, said.failure.kind)
        # Where a request goes to two replicas, what one did not get the other may have.
        if said.failure.unsent and (self._served.upstream.past_router or not said.replica):
            if said.replica:
                self._tried |= {said.replica}
            return self._past_router
        timed_out = connection.status == 504
        answer = replies.UPSTREAM_TIMEOUT if timed_out else replies.UPSTREAM_ERROR
        return lambda: answer

    def _past_router(self) -> LocalReply | None:
        """The router could not serve the request and no replica has seen it."""
        if not self._served.upstream.past_router:
            return replies.ROUTER_NOT_READY
        self._exchange.via = "fallback"
        self._exchange.attempts = 0
        self.to_router = False
        if not self._body.repeatable:
            return replies.UPSTREAM_ERROR
        self._go()
        return None

    def sweep(self, now: float) -> None:
        if self._steering is not None:
            self._steering.sweep(now)

    def close(self) -> None:
        """The exchange is over. What was made for it is let go of here, not by the collector:
        garbage in circles makes every request write to memory that no cache holds."""
        self._go = _nowhere
        if self._steering is not None:
            self._steering.close()
            self._steering = None


def _nowhere() -> None:
    """The exchange is over."""


# Called once the failed attempt is put away: goes on (None), or gives the answer.
HopVerdict = Callable[[], LocalReply | None]


def reply_of(failure: Failure) -> LocalReply:
    timed_out = failure in (Failure.TIMEOUT_CONNECT, Failure.TIMEOUT_FIRST_BYTE)
    return replies.UPSTREAM_TIMEOUT if timed_out else replies.UPSTREAM_ERROR
