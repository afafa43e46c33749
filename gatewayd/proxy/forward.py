"""One exchange's attempts upstream, both body streams, and every way it can end.

Owns: connecting, sending, relaying, deadlines of the hop, accounting of requests in flight.
Does not own: admission (handler), framing of answers (net.upstream), where an attempt goes and
what follows when it fails (course).
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Final

from gatewayd.core import reply as replies
from gatewayd.core.model import Endpoint
from gatewayd.core.reply import LocalReply
from gatewayd.core.retry import Failure, Sent
from gatewayd.net.pool import ConnectFailedError, Pool
from gatewayd.net.sink import NOWHERE, BodyPath
from gatewayd.net.upstream import UpstreamConnection
from gatewayd.proxy.course import Course
from gatewayd.proxy.deadlines import Deadlines, Late
from gatewayd.proxy.dechunked import Dechunked
from gatewayd.proxy.hop import FAILURE_FIELD, REPLICA_FIELD, request_head, response_head, trust_s
from gatewayd.proxy.lasting import settle
from gatewayd.proxy.payload import BodyRefusedError
from gatewayd.proxy.upgrade import start_tunnel
from gatewayd.proxy.upload import Body, RequestBody
from gatewayd.proxy.whole_body import NO_BODY, WholeBody

if TYPE_CHECKING:
    from gatewayd.proxy.exchange import Exchange
    from gatewayd.proxy.plane import Plane
    from gatewayd.proxy.served import Served


class Forward:
    """Runs from the first attempt to the last byte; the sweeper holds it meanwhile, which writes
    `sweep_at`: unless 0, the second of the loop's time in which it looks again.

    `as_it_comes`: the client gets the pieces of the replica's answer, so that anybody may pass them
    on."""

    as_it_comes: ClassVar[bool] = True

    __slots__ = (
        "_body",
        "_connecting",
        "_connection",
        "_course",
        "_deadlines",
        "_endpoint",
        "_exchange",
        "_failure",
        "_over",
        "_plane",
        "_responding",
        "_served",
        "_trusted_s",
        "sweep_at",
    )

    def __init__(self, plane: Plane, exchange: Exchange, served: Served) -> None:
        self.sweep_at = 0
        self._plane = plane
        self._exchange = exchange
        self._served = served
        self._course: Course | None = None  # none while there is nothing to decide about
        self._endpoint: Endpoint | None = None
        self._connection: UpstreamConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._deadlines: Deadlines | None = None
        self._trusted_s = 0.0  # how long the attempt's connection may have been idle
        self._over = False
        self._responding = False
        self._failure = ""  # of the last attempt
        self._body: Body = NO_BODY
        if isinstance(exchange.payload, WholeBody):
            self._body = exchange.payload
            exchange.bytes_in = exchange.length  # not before: a refused body is not taken
        elif exchange.length or served.router is not None:
            self._body = RequestBody(plane, exchange, served.max_body_size, self._refuse)
        exchange.running = self

    def __repr__(self) -> str:
        return f"<Forward {self._exchange!r} attempt {self._exchange.attempts}>"

    def start(self) -> None:
        self._plane.sweeper.begin(self)
        if self._served.router is None:
            self._exchange.via = "direct"
            self._attempt()
        else:
            self._set_course().begin()

    def _set_course(self) -> Course:
        course = self._course
        if course is None:
            course = self._course = Course(
                self._plane, self._exchange, self._served, self._body, self._attempt
            )
        return course

    # --- attempts

    def _attempt(self) -> None:
        course, exchange, plane = self._course, self._exchange, self._plane
        endpoint = self._served.choose(plane) if course is None else course.choose()
        if endpoint is None:
            self._answer(replies.NO_REPLICA)
            return
        self._endpoint = endpoint
        exchange.attempts += 1
        exchange.replica = endpoint.replica
        plane.loads.add(endpoint.index)
        pool = plane.pool(endpoint)
        trusted_s = self._trusted_s = trust_s(exchange, endpoint, pool)
        if course is not None and course.fresh:
            trusted_s = 0.0
        connection = pool.take(plane.loop.time() - trusted_s) if trusted_s else None
        if connection is None:
            self._connecting = plane.spawn(self._connect(pool), exchange)
        else:
            self._send(connection)

    async def _connect(self, pool: Pool) -> None:
        try:
            connection = await pool.connect(self._served.timeouts.connect)
        except ConnectFailedError as error:
            self._connecting = None
            if not self._over:
                self._attempt_failed(error.failure, Sent.NOTHING, reused=False)
            return
        self._connecting = None
        if self._over:
            connection.abort()
        else:
            self._send(connection)

    def _send(self, connection: UpstreamConnection) -> None:
        exchange = self._exchange
        served = self._served
        endpoint = self._endpoint
        assert endpoint is not None
        self._connection = connection
        to_router = self._course is not None and self._course.to_router
        try:
            body = self._body.whole()
        except BodyRefusedError as refused:
            self._answer(refused.reply)
            return
        is_last = not self._trusted_s
        connection.begin(
            self,
            request_head(exchange, served, endpoint, is_last),
            body,
            served.strip_router_response if to_router else served.strip_response,
            exchange.method == "HEAD",
            is_last,
            exchange.upgrade != b"",
        )
        if body is None:
            # A router's refusal can still be repaired by sending the body past it.
            self._body.send(connection, keep=to_router)

    def _refuse(self, reply: LocalReply) -> None:
        """The body is too large or does not arrive, or we have failed: the exchange ends here."""
        self._exchange.closed_by = "gateway"
        if self._responding or self._over:
            self._cut("gateway")
        else:
            self._answer(reply)

    # --- Sink: the answer

    def response_started(self, connection: UpstreamConnection) -> BodyPath:
        exchange = self._exchange
        served = self._served
        status = connection.status
        course = self._course
        if course is not None and course.to_router:
            verdict = course.judge(connection)
            if verdict is not None:
                connection.abort()
                self._put_away()
                if (reply := verdict()) is not None:
                    self._answer(reply)
                return _NOWHERE
        elif served.refuse_redirects and 300 <= status < 400 and status != 304:
            # The router would follow it anywhere, with the client's body.
            self._drop_attempt(connection, Failure.BROKEN)
            return _NOWHERE
        client = exchange.connection
        if client.transport is None:
            connection.abort()
            return _NOWHERE
        self._responding = True
        self._body.forget()  # a stream may run for minutes
        exchange.status = status
        if served.live.ejections.out and self._endpoint is not None:
            served.live.ejections.succeeded(self._endpoint.id)
        if status == 101:
            start_tunnel(exchange, connection)
            return _NOWHERE
        arrived = exchange.known is not None or exchange.payload.is_eof()
        if not arrived or client.closing or client.draining:
            exchange.close = True
        lead = response_head(exchange, served, connection, self._plane)
        head = connection.head
        if head.chunked:
            if not exchange.http11:
                client.open_ended()
                return b"", Dechunked(client, lead)
        elif head.length < 0 or (status >= 400 and served.unsized_errors):
            client.open_ended()
        return lead, client

    def first_byte(self) -> None:
        self._exchange.first_byte_at = time.monotonic()

    def response_ended(self, connection: UpstreamConnection) -> None:
        exchange = self._exchange
        exchange.bytes_out = received = connection.received
        now = time.monotonic()
        if received and not exchange.first_byte_at:
            exchange.first_byte_at = now
        self._connection = None  # back in its pool, or closed
        self._leave()
        exchange.connection.exchange_ended(exchange, now)

    def response_failed(
        self, connection: UpstreamConnection, failure: Failure, detail: str
    ) -> None:
        self._exchange.bytes_out = connection.received
        if self._responding:
            # Of a router's answer: the replica that it came from, as in the other modes.
            self._served.meter.upstream_error(self._exchange.replica, failure.kind)
            self._cut("upstream")
            return
        sent = Sent.SOME
        if connection.request_done:
            sent = Sent.UNREAD if connection.unread else Sent.ALL
        self._attempt_failed(failure, sent, reused=connection.reused)

    def _drop_attempt(self, connection: UpstreamConnection, failure: Failure) -> None:
        connection.abort()
        self._attempt_failed(failure, Sent.ALL, reused=False)

    def _attempt_failed(self, failure: Failure, sent: Sent, *, reused: bool) -> None:
        endpoint = self._endpoint
        assert endpoint is not None
        self._failure = failure.kind
        self._put_away()
        reply = self._set_course().failed(endpoint, failure, sent, reused=reused)
        if reply is not None:
            self._answer(reply)

    def _put_away(self) -> None:
        """An attempt is over, the exchange is not."""
        self._connection = None
        self._body.stop()
        self._release()

    # --- endings

    def _answer(self, reply: LocalReply) -> None:
        """Nothing has been sent to the client: it gets an answer of ours."""
        if self._over:
            return
        exchange = self._exchange
        self._leave()
        if reply.rejection:
            self._served.meter.rejected(reply.rejection)
        if reply.status >= 500 and exchange.closed_by == "-":
            exchange.closed_by = "upstream"
        if self._served.from_bridge:
            fields = (
                (REPLICA_FIELD, exchange.replica.encode()),
                (FAILURE_FIELD, self._failure.encode()),
            )
            reply = replace(reply, headers=fields)
        exchange.answer(reply)

    def _cut(self, closed_by: str) -> None:
        """The answer has begun and cannot end whole: the client must see that."""
        exchange = self._exchange
        if self._connection is not None:
            exchange.bytes_out = self._connection.received
        exchange.closed_by = closed_by
        exchange.close = True
        self._leave()
        exchange.connection.abort()
        exchange.connection.exchange_ended(exchange)

    def _leave(self) -> None:
        self._over = True
        sweeper = self._plane.sweeper
        sweeper.active.discard(self)
        if self.sweep_at:
            sweeper.forget(self)
        if self._course is not None:
            self._course.close()
        self._body.close()
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        if self._connection is not None:
            self._connection.abort()
            self._connection = None
        self._release()

    def _release(self) -> None:
        if self._endpoint is not None:
            self._plane.loads.done(self._endpoint.index)
            self._endpoint = None

    def end(self, reply: LocalReply) -> None:
        if self._exchange.running is self:
            self._refuse(reply)

    # --- the client's side

    def client_gone(self) -> None:
        """The client left: the replica is told at once, by the end of its connection."""
        if self._over:
            return
        exchange = self._exchange
        if self._connection is not None:
            exchange.bytes_out = self._connection.received
        exchange.closed_by = "client"
        exchange.status = exchange.status or 499  # nginx's word for it
        self._leave()

    def client_broke(self, reply: LocalReply) -> None:
        """The request body broke off its framing; what follows cannot be understood."""
        if self._responding:
            self._cut("client")
        else:
            self._exchange.closed_by = "client"
            self._exchange.close = True
            self._answer(reply)

    def client_paused(self) -> None:
        if self._connection is not None:
            self._connection.pause_reading()

    def client_resumed(self) -> None:
        if self._connection is not None:
            self._connection.resume_reading()

    # --- deadlines

    def sweep(self, now: float) -> float:
        """When there is something to look at again (loop time); 0.0: in the next round."""
        if self._course is not None:
            self._course.sweep(now)
        connection = self._connection
        if connection is None or self._over:
            return 0.0  # connecting is bounded by its own timeout
        deadlines = self._deadlines
        if deadlines is None:  # most exchanges end before the first sweep
            deadlines = self._deadlines = Deadlines(
                self._served.timeouts,
                self._plane.body_idle_timeout,
                started_at=self._exchange.started_at,
                now=now,
            )
        late = deadlines.check(now, connection, self._exchange)
        if late is Late.BODY:
            self._refuse(replies.BODY_TIMEOUT)
        elif late is not None:
            self._time_out(late)
        elif self._course is None or self._responding:
            rest_s = deadlines.rest_s
            if self.as_it_comes:
                rest_s = settle(self._plane.lane, self._exchange, connection, rest_s)
            return now + rest_s
        return 0.0

    def _time_out(self, late: Late) -> None:
        self._served.meter.upstream_error(self._exchange.replica, late.value)
        self._failure = late.value
        if self._responding:
            self._cut("upstream")
        else:
            self._answer(replies.UPSTREAM_TIMEOUT)

    def tunnel_closed(self, connection: UpstreamConnection) -> None:
        self._exchange.closed_by = "upstream"
        self.response_ended(connection)


_NOWHERE: Final[BodyPath] = (b"", NOWHERE)
