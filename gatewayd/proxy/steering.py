"""Asking a service's router where a request should go, without sending it that way.

Owns: the question, its deadline, every way it can fail, the end of the router's request.
Does not own: the exchange (forward), what routers can decide on (their plug-ins, through
RouterTraits), the other end of the link (bridge.claims).
"""

from __future__ import annotations

import asyncio
import enum
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from gatewayd.core.retry import Failure
from gatewayd.core.steering import finish, read_claim, token
from gatewayd.net.link import Link
from gatewayd.net.pool import ConnectFailedError, Pool
from gatewayd.proxy.hop import request_head
from gatewayd.proxy.upload import BodyTooLargeError, RequestBody

if TYPE_CHECKING:
    from gatewayd.core.model import Endpoint
    from gatewayd.net.upstream import UpstreamConnection
    from gatewayd.proxy.exchange import Exchange
    from gatewayd.proxy.plane import Plane
    from gatewayd.proxy.served import Served

_REMOVAL_S: Final = 0.1  # how long a second question waits for a dead target to leave the router

_HELD_BACK_S: Final = 1.0  # without questions after one that was not answered in time


class Outcome(enum.Enum):
    """How a question ended; the value is the metrics' label."""

    STEERED = "steered"
    REFUSED = "refused"  # the router answered without a claim
    TIMEOUT = "timeout"
    ROUTER_DOWN = "router_down"  # it refused or broke the connection
    BRIDGE_DOWN = "bridge_down"
    BODY_LIMIT = "body_limit"  # too large to be asked about
    GONE = "gone"  # it chose a replica that takes no requests any more
    REPLICA_REFUSED = "replica_refused"  # it chose, again, one that refuses connections
    SKIPPED = "skipped"  # not asked, because it has just not answered others in time


class Asker:
    """The worker's end of the link to the bridge, and the questions that are open on it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, slot: int, incarnation: int) -> None:
        self._loop = loop
        self._slot = slot
        self._incarnation = incarnation
        self._count = 0
        self._link: Link | None = None
        self._open: dict[bytes, Steering] = {}

    def __repr__(self) -> str:
        return f"<Asker {len(self._open)} open>"

    @property
    def up(self) -> bool:
        return self._link is not None and not self._link.closed

    def link(self, fd: int) -> None:
        """A bridge lives now; the claims of its predecessor have gone with it."""
        if self._link is not None:
            self._link.close()
            self._lost()
        self._link = Link(socket.socket(fileno=fd), self._on_frame, self._lost, self._loop)

    def open(self, steering: Steering) -> bytes:
        self._count += 1
        value = token(self._slot, self._incarnation, self._count)
        self._open[value] = steering
        return value

    def finish(self, value: bytes) -> None:
        """The exchange is over, or nobody asks any more: the bridge may let the router go."""
        self._open.pop(value, None)
        if self._link is not None:
            self._link.send(finish(value))

    def close(self) -> None:
        if self._link is not None:
            self._link.close()

    def _on_frame(self, frame: bytes) -> None:
        said = read_claim(frame)
        if said is None:
            return
        value, replica = said
        steering = self._open.get(value)
        if steering is None:
            self.finish(value)  # the answer came too late
        else:
            steering.claimed(replica)

    def _lost(self) -> None:
        for steering in list(self._open.values()):
            steering.bridge_lost()


class Steering:
    """One exchange's questions to its router; at most two. `decided(endpoint)` is called once
    for each, with None when the gateway must choose by itself."""

    __slots__ = (
        "_again",
        "_asked_at",
        "_asking",
        "_avoid",
        "_body",
        "_claimed",
        "_connection",
        "_decided",
        "_exchange",
        "_plane",
        "_router",
        "_served",
        "_task",
        "_token",
    )

    def __init__(
        self,
        plane: Plane,
        exchange: Exchange,
        served: Served,
        body: RequestBody,
        decided: Callable[[Endpoint | None], None],
    ) -> None:
        assert served.router is not None
        self._plane = plane
        self._exchange = exchange
        self._served = served
        self._router: Endpoint = served.router
        self._body = body
        self._decided = decided
        self._connection: UpstreamConnection | None = None
        self._task: asyncio.Task[None] | None = None
        self._token = b""
        self._asking = False
        self._claimed = False
        self._again = False
        self._avoid = ""
        self._asked_at = 0.0

    def __repr__(self) -> str:
        state = "asking" if self._asking else "claimed" if self._claimed else "over"
        return f"<Steering {state}>"

    # --- the question

    def ask(self) -> None:
        plane = self._plane
        self._asking = True
        self._asked_at = plane.loop.time()
        if not plane.asker.up:
            self._decide_alone(Outcome.BRIDGE_DOWN)
            return
        if self._asked_at < self._served.live.ask_after:
            self._decide_alone(Outcome.SKIPPED)
            return
        if self._exchange.length > self._served.steer_body_limit:
            self._decide_alone(Outcome.BODY_LIMIT)
            return
        self._claimed = False
        self._token = plane.asker.open(self)
        plane.loads.add(self._router.index)
        pool = plane.pool(self._router)
        connection = pool.take(plane.loop.time() - self._router.reuse_s)
        if connection is None:
            self._task = plane.spawn(self._connect(pool))
        else:
            self._send(connection)

    def ask_again(self, refused: str) -> None:
        """The replica chosen refuses connections: ask once more, when the router knows."""
        self._end_question()
        if self._again:
            self._count(Outcome.REPLICA_REFUSED)
            self._decided(None)
            return
        self._again = True
        self._avoid = refused
        self._asking = True
        self._asked_at = self._plane.loop.time()
        self._task = self._plane.spawn(self._ask_after_removal())

    async def _ask_after_removal(self) -> None:
        await self._plane.changed(_REMOVAL_S)
        self._task = None
        if self._asking:
            self.ask()

    async def _connect(self, pool: Pool) -> None:
        try:
            connection = await pool.connect(self._served.steer_timeout)
        except ConnectFailedError:
            self._task = None
            self._decide_alone(Outcome.ROUTER_DOWN)
            return
        self._task = None
        if self._asking:
            self._send(connection)
        else:
            connection.abort()

    def _send(self, connection: UpstreamConnection) -> None:
        self._connection = connection
        head = request_head(self._exchange, self._served, self._router, self._token)
        try:
            body = self._body.whole()
        except BodyTooLargeError:
            # The forward finds the same, and says so to the client.
            self._decide_alone(Outcome.BODY_LIMIT)
            return
        if body is None:
            connection.begin(self, head)
            self._task = self._plane.spawn(self._send_body(connection))
        elif len(body) > self._served.steer_body_limit:
            self._decide_alone(Outcome.BODY_LIMIT)
        else:
            connection.begin(self, head + body)
            connection.request_done = True

    async def _send_body(self, connection: UpstreamConnection) -> None:
        """The router needs the whole request to decide. What is passed on to it is kept for the
        replica, so nothing is read twice and held once; a body that grows too large is given to
        a replica of our own choice as far as it has come, and relayed from there on."""
        body = self._body
        self._exchange.send_continue()
        for data in body.kept:
            connection.write(body.framed(data))
        try:
            while data := await body.read():
                if body.kept_size > self._served.steer_body_limit:
                    self._task = None
                    self._decide_alone(Outcome.BODY_LIMIT)
                    return
                connection.write(body.framed(data))
                if connection.writing_paused:
                    await connection.drained()
        except BodyTooLargeError:
            self._task = None
            self._decide_alone(Outcome.BODY_LIMIT)
            return
        if body.trailer:
            connection.write(body.trailer)
        connection.request_done = True
        self._task = None

    # --- answers

    def claimed(self, replica: str) -> None:
        """The bridge has seen the request on this replica's port."""
        if not self._asking:
            self._end_question()
            return
        self._claimed = True
        endpoint = self._served.endpoint_now(replica)
        if endpoint is None:
            self._decide_alone(Outcome.GONE)
        elif replica == self._avoid:
            self._decide_alone(Outcome.REPLICA_REFUSED)
        else:
            self._asking = False
            self._count(Outcome.STEERED)
            self._decided(endpoint)

    def bridge_lost(self) -> None:
        if self._asking:
            self._decide_alone(Outcome.BRIDGE_DOWN)
        else:
            self._end_question()

    def sweep(self, now: float) -> None:
        if self._asking and now - self._asked_at > self._served.steer_timeout:
            # A router that hangs costs those who asked it, not everybody who comes meanwhile.
            self._served.live.ask_after = now + _HELD_BACK_S
            self._decide_alone(Outcome.TIMEOUT)

    def close(self) -> None:
        """The exchange is over, however it ended: so is the router's request."""
        self._asking = False
        self._end_question()

    def _decide_alone(self, outcome: Outcome) -> None:
        if self._asking:
            self._asking = False
            self._count(outcome)
            self._end_question()
            self._decided(None)

    def _count(self, outcome: Outcome) -> None:
        self._served.meter.steering(outcome.value)

    def _end_question(self) -> None:
        """Let the router go: through the bridge where it holds the request, else by hanging up."""
        task, self._task = self._task, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()
        value, self._token = self._token, b""
        if not value:
            return
        connection = self._connection
        if not self._claimed and connection is not None:
            self._connection = None
            connection.abort()
        self._plane.asker.finish(value)
        if self._connection is None:
            self._plane.loads.done(self._router.index)

    # --- Sink: what the router answers is of no interest beyond that it came

    def response_started(self, connection: UpstreamConnection) -> Callable[[bytes], None]:
        if self._asking and not self._claimed:
            self._decide_alone(Outcome.REFUSED)
        return _nowhere

    def first_byte(self) -> None:
        """Of an answer that goes nowhere."""

    def response_ended(self, connection: UpstreamConnection) -> None:
        self._router_done(connection)

    def response_failed(
        self, connection: UpstreamConnection, failure: Failure, detail: str
    ) -> None:
        if self._asking and not self._claimed:
            self._connection = None
            self._decide_alone(Outcome.ROUTER_DOWN)
        else:
            self._router_done(connection)

    def tunnel_closed(self, connection: UpstreamConnection) -> None:
        """Never: no upgrade is asked for."""

    def _router_done(self, connection: UpstreamConnection) -> None:
        if self._connection is connection:
            self._connection = None
            self._plane.loads.done(self._router.index)


def _nowhere(data: bytes) -> None:
    """The router's copy of an answer that goes straight to the client."""
