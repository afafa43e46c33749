"""One exchange's way upstream: the attempt loop, both body streams, and every way it can end.

Owns: choosing an endpoint, sending, repeating, relaying, deadlines of the hop, accounting of
requests in flight. Does not own: admission (handler), framing of answers (net.upstream),
whether a repeat is allowed (core.retry).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from gatewayd.core import reply as replies
from gatewayd.core.balancer import pick
from gatewayd.core.headers import drop_prefixed
from gatewayd.core.model import Endpoint
from gatewayd.core.reply import LocalReply
from gatewayd.core.retry import Fail, Failure, Sent, decide, is_idempotent
from gatewayd.net.upstream import ConnectFailedError, Pool, UpstreamConnection
from gatewayd.proxy.plane import POOL_IDLE_S
from gatewayd.proxy.served import response_headers

if TYPE_CHECKING:
    from gatewayd.proxy.exchange import Exchange
    from gatewayd.proxy.plane import Plane
    from gatewayd.proxy.served import Served

_REPLAY_SIZE: Final = 1024 * 1024  # of a body kept so that it can be sent once more
_JOIN_SIZE: Final = 64 * 1024  # below it, head and body leave in one write
_FAILURE_HEADER: Final = b"X-Gatewayd-Failure"
_REPLICA_HEADER: Final = b"X-Gatewayd-Replica"
_OURS: Final = frozenset((_FAILURE_HEADER.lower(), _REPLICA_HEADER.lower()))


class Forward:
    """Runs from the first attempt to the last byte; `plane.active` holds it meanwhile."""

    __slots__ = (
        "_body",
        "_connecting",
        "_connection",
        "_direct",
        "_endpoint",
        "_exchange",
        "_marked",
        "_over",
        "_plane",
        "_progress",
        "_progress_at",
        "_replay",
        "_replay_size",
        "_responding",
        "_served",
        "_started_at",
        "_tried",
        "_upload",
    )

    def __init__(self, plane: Plane, exchange: Exchange, served: Served) -> None:
        self._plane = plane
        self._exchange = exchange
        self._served = served
        self._endpoint: Endpoint | None = None
        self._connection: UpstreamConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._upload: asyncio.Task[None] | None = None
        self._tried: frozenset[str] = frozenset()
        self._direct = served.router is None
        self._marked = b""
        self._over = False
        self._responding = False
        self._body: bytes | None = None  # the whole request body, when it had arrived
        self._replay: list[bytes] | None = None  # a streamed body, while it is small enough
        self._replay_size = 0
        self._started_at = self._progress_at = plane.loop.time()
        self._progress = -1
        exchange.running = self

    def __repr__(self) -> str:
        return f"<Forward {self._exchange!r} attempt {self._exchange.attempts}>"

    def start(self) -> None:
        self._plane.active.add(self)
        self._attempt()

    # --- attempts

    def _attempt(self) -> None:
        endpoint = self._choose()
        exchange = self._exchange
        if endpoint is None:
            self._answer(replies.NO_REPLICA)
            return
        self._endpoint = endpoint
        exchange.attempts += 1
        exchange.replica = endpoint.replica
        plane = self._plane
        plane.loads.add(endpoint.index)
        pool = plane.pool(endpoint)
        # A pooled connection may be closing at this moment. What may be repeated takes the risk;
        # the rest only where the peer is known to keep idle connections for long.
        fresh_enough = POOL_IDLE_S if is_idempotent(exchange.method) else endpoint.reuse_s
        connection = None
        if fresh_enough:
            connection = pool.take(plane.loop.time() - max(fresh_enough, endpoint.reuse_s))
        if connection is None:
            self._connecting = plane.spawn(self._connect(pool))
        else:
            self._send(connection)

    def _choose(self) -> Endpoint | None:
        served = self._served
        upstream = served.upstream
        if not self._direct:
            self._exchange.via = "through"
            return served.router
        live = served.live
        live.turn += 1
        return pick(
            upstream.endpoints,
            self._plane.loads,
            balance=upstream.balance,
            salt=self._plane.chance.getrandbits(30) if upstream.balance == "random" else live.turn,
            tried=self._tried,
            ejections=live.ejections,
            now=self._plane.loop.time(),
        )

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
        self._connection = connection
        self._progress_at = self._plane.loop.time()
        head = self._request_head()
        body = self._whole_body()
        if self._over:  # the body turned out too large
            connection.abort()
            return
        served = self._served
        strip = served.strip_response if self._direct else served.strip_router_response
        whole = body is not None
        joined = head + body if body and len(body) <= _JOIN_SIZE else head
        connection.begin(
            self,
            joined,
            is_head=exchange.method == "HEAD",
            wants_upgrade=bool(exchange.upgrade),
            strip=strip,
        )
        if body and len(body) > _JOIN_SIZE:
            connection.write(body)
        if whole:
            connection.request_done = True
        else:
            self._upload = self._plane.spawn(self._send_body(connection))

    def _request_head(self) -> bytes:
        exchange = self._exchange
        served = self._served
        head = exchange.head
        lines = head.lines
        version = b"HTTP/1.1" if exchange.http11 else b"HTTP/1.0"
        target = exchange.upstream_target.encode("utf-8", "surrogateescape")
        parts = [
            b"%b %b %b\r\nHost: %b\r\n"
            % (exchange.method.encode(), target, version, exchange.host.encode())
        ]
        if self._direct:
            parts += lines
            if served.forward_auth and (auth := head.noted.get(b"authorization")) is not None:
                parts.append(b"Authorization: %b\r\n" % auth)
        else:
            traits = served.traits
            if traits.strip_request_prefixes:
                lines = drop_prefixed(lines, traits.strip_request_prefixes)
            parts += lines
            parts.append(served.router_lines)
            if traits.token_header:
                parts.append(b"%b: %b\r\n" % (traits.token_header, exchange.request_id))
        parts.append(exchange.forwarded_lines)
        if exchange.length > 0:
            parts.append(b"Content-Length: %d\r\n" % exchange.length)
        elif exchange.length < 0:
            parts.append(b"Transfer-Encoding: chunked\r\n")
        elif exchange.head.noted.get(b"content-length") is not None:
            parts.append(b"Content-Length: 0\r\n")
        if exchange.upgrade:
            parts.append(b"Connection: Upgrade\r\nUpgrade: %b\r\n" % exchange.upgrade)
        elif not exchange.http11 or not (is_idempotent(exchange.method) or self._reusable):
            parts.append(b"Connection: close\r\n")
        parts.append(b"\r\n")
        return b"".join(parts)

    @property
    def _reusable(self) -> bool:
        return self._endpoint is not None and self._endpoint.reuse_s > 0

    # --- the request body

    def _whole_body(self) -> bytes | None:
        """The body as it goes on the wire when all of it is here, b"" without one, else None."""
        exchange = self._exchange
        if not exchange.length:
            return b""
        if self._body is None:
            if self._replay is not None and self._replay_size >= 0 and exchange.attempts > 1:
                return self._replayed()
            if not exchange.payload.is_eof():
                return None
            body = exchange.payload.read_nowait()
            exchange.bytes_in = len(body)
            if len(body) > self._served.max_body_size:
                self._answer(replies.BODY_TOO_LARGE)
                return None
            self._body = body
        if exchange.length > 0:
            return self._body
        if not self._body:
            return b"0\r\n\r\n"
        return b"%x\r\n%b\r\n0\r\n\r\n" % (len(self._body), self._body)

    def _replayed(self) -> bytes | None:
        """What has been read of a streamed body, when that is all of it."""
        if self._replay is None or not self._exchange.payload.at_eof():
            return None
        self._body, self._replay = b"".join(self._replay), None
        return self._whole_body()

    async def _send_body(self, connection: UpstreamConnection) -> None:
        """Relay a body that is still arriving; at most one read is held while the replica is
        slow, the rest waits in the client's socket."""
        exchange = self._exchange
        payload = exchange.payload
        chunked = exchange.length < 0
        if self._replay is None and not self._direct:
            self._replay = []
        exchange.send_continue()
        while data := await payload.readany():
            exchange.bytes_in += len(data)
            if exchange.bytes_in > self._served.max_body_size:
                self._refuse_upload(replies.BODY_TOO_LARGE)
                return
            self._keep(data)
            if chunked:
                data = b"%x\r\n%b\r\n" % (len(data), data)
            connection.write(data)
            if connection.writing_paused:
                await connection.drained()
        if chunked:
            connection.write(b"0\r\n\r\n")
        connection.request_done = True
        self._progress_at = self._plane.loop.time()
        self._upload = None

    def _keep(self, data: bytes) -> None:
        if self._replay is not None:
            self._replay_size += len(data)
            if self._replay_size > _REPLAY_SIZE:
                self._replay = None
            else:
                self._replay.append(data)

    def _refuse_upload(self, reply: LocalReply) -> None:
        self._upload = None
        if self._responding:
            self._cut("gateway")
        else:
            self._exchange.closed_by = "gateway"
            self._answer(reply)

    # --- Sink: the answer

    def response_started(self, connection: UpstreamConnection) -> Callable[[bytes], None]:
        exchange = self._exchange
        served = self._served
        head = connection.head
        status = connection.status
        if not self._direct:
            if self._router_failed(connection):
                return _nowhere
        elif served.refuse_redirects and 300 <= status < 400 and status != 304:
            # The router would follow it anywhere, with the client's body.
            self._drop_attempt(connection, Failure.BROKEN)
            return _nowhere
        client = exchange.connection
        transport = client.transport
        if transport is None:
            connection.abort()
            return _nowhere
        if head.chunked and not exchange.http11:
            self._drop_attempt(connection, Failure.BROKEN)
            return _nowhere
        self._responding = True
        exchange.status = status
        if served.live.ejections and self._endpoint is not None:
            served.live.ejections.succeeded(self._endpoint.id)
        if status == 101:
            self._start_tunnel(connection)
            return _nowhere
        if not exchange.payload.is_eof() or client.closing or client.draining:
            exchange.close = True
        parts = [connection.status_line, *head.lines]
        if head.chunked:
            parts.append(b"Transfer-Encoding: chunked\r\n")
        elif head.length < 0 and status not in (204, 304) and exchange.method != "HEAD":
            exchange.close = True  # the end of the body is the end of the connection
        self._add_own_fields(parts, connection)
        transport.write(b"".join(parts))
        return transport.write

    def _add_own_fields(self, parts: list[bytes], connection: UpstreamConnection) -> None:
        exchange = self._exchange
        head = connection.head
        if not head.has_date:
            parts.append(b"Date: %b\r\n" % self._plane.date())
        parts.append(b"X-Request-Id: %b\r\n" % exchange.request_id)
        if head.content_type.startswith(b"text/event-stream"):
            parts.append(b"X-Accel-Buffering: no\r\n")
        if self._served.cors is not None:
            parts.append(response_headers(self._served.cors, exchange.head.noted.get(b"origin")))
        if self._marked or self._served.mark_failures:
            parts.append(b"%b: %b\r\n" % (_REPLICA_HEADER, exchange.replica.encode()))
        if exchange.close:
            parts.append(b"Connection: close\r\n")
        parts.append(b"\r\n")

    def first_byte(self) -> None:
        self._exchange.first_byte_at = time.monotonic()

    def response_ended(self, connection: UpstreamConnection) -> None:
        exchange = self._exchange
        exchange.bytes_out = connection.received
        self._finish()

    def response_failed(
        self, connection: UpstreamConnection, failure: Failure, detail: str
    ) -> None:
        self._exchange.bytes_out = connection.received
        if self._responding:
            assert self._endpoint is not None
            self._served.meter.upstream_error(self._endpoint.replica, failure.kind)
            self._cut("upstream")
            return
        sent = Sent.ALL if connection.request_done else Sent.SOME
        self._connection = None
        self._attempt_failed(failure, sent, reused=connection.reused)

    def _drop_attempt(self, connection: UpstreamConnection, failure: Failure) -> None:
        connection.abort()
        self._connection = None
        self._attempt_failed(failure, Sent.ALL, reused=False)

    # --- failures

    def _attempt_failed(self, failure: Failure, sent: Sent, *, reused: bool) -> None:
        exchange = self._exchange
        endpoint = self._endpoint
        assert endpoint is not None
        self._stop_upload()
        self._release()
        served = self._served
        served.meter.upstream_error(endpoint.replica, failure.kind)
        if not self._direct:
            if sent is Sent.NOTHING:
                self._fall_back()
            else:
                self._answer(_reply_of(failure))
            return
        if failure is Failure.CONNECT:
            self._plane.unreachable.add(f"{served.key}|{endpoint.replica}")
        if not reused:
            served.live.ejections.failed(
                endpoint.id, self._plane.loop.time(), refused=failure is Failure.CONNECT
            )
        decision = decide(
            attempt=exchange.attempts,
            failure=failure,
            sent=sent,
            idempotent=is_idempotent(exchange.method),
            reused=reused,
            endpoints=len(served.upstream.endpoints),
        )
        if isinstance(decision, Fail) or not self._can_repeat(sent):
            self._answer(_reply_of(failure))
            return
        served.meter.retried()
        if decision.avoid_endpoint:
            self._tried |= {endpoint.id}
        self._attempt()

    def _can_repeat(self, sent: Sent) -> bool:
        """Whether the body is still here to be sent again."""
        if sent is Sent.NOTHING or not self._exchange.length or self._body is not None:
            return True
        return self._replay is not None and self._exchange.payload.at_eof()

    def _fall_back(self) -> None:
        """The router could not serve the request and no replica has seen it: go past it."""
        self._served.meter.fell_back()
        self._exchange.via = "fallback"
        self._direct = True
        self._exchange.attempts = 0
        if self._exchange.bytes_in and not self._can_repeat(Sent.ALL):
            self._answer(replies.UPSTREAM_ERROR)
        else:
            self._attempt()

    def _router_failed(self, connection: UpstreamConnection) -> bool:
        """Answers that the router, or the bridge behind it, made for want of a replica."""
        exchange = self._exchange
        traits = self._served.traits
        error = connection.field(traits.error_header) if traits.error_header else None
        failure = connection.field(_FAILURE_HEADER.lower())
        replica = connection.field(_REPLICA_HEADER.lower())
        if replica is not None:
            exchange.replica = replica.decode("latin-1")
        connection.head.drop(_OURS)
        if connection.status < 500 or (error is None and failure is None):
            return False
        connection.abort()
        self._connection = None
        self._stop_upload()
        self._release()
        unsent = failure == b"connect" if failure is not None else error in traits.unsent_errors
        kind = failure or error or b""
        self._served.meter.upstream_error(exchange.replica, kind.decode("latin-1"))
        if unsent:
            if replica is not None:
                self._tried |= {exchange.replica}
            self._fall_back()
        else:
            timed_out = failure == b"timeout"
            self._answer(replies.UPSTREAM_TIMEOUT if timed_out else replies.UPSTREAM_ERROR)
        return True

    # --- endings

    def _answer(self, reply: LocalReply) -> None:
        """Nothing has been sent to the client: it gets an answer of ours."""
        if self._over:
            return
        exchange = self._exchange
        self._leave()
        if reply.rejection:
            self._served.meter.rejected(reply.rejection)
        if reply.status >= 500:
            exchange.closed_by = "upstream"
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

    def _finish(self) -> None:
        self._connection = None  # back in its pool, or closed
        self._leave()
        self._exchange.connection.exchange_ended(self._exchange)

    def _leave(self) -> None:
        self._over = True
        self._plane.active.discard(self)
        self._stop_upload()
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

    def _stop_upload(self) -> None:
        if self._upload is not None:
            self._upload.cancel()
            self._upload = None

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
            self._progress_at = self._plane.loop.time()
            self._connection.resume_reading()

    # --- deadlines

    def sweep(self, now: float) -> None:
        connection = self._connection
        if connection is None or self._over:
            return  # connecting is bounded by its own timeout
        timeouts = self._served.timeouts
        if timeouts.total is not None and now - self._started_at > timeouts.total:
            self._time_out()
            return
        exchange = self._exchange
        progress = connection.received + exchange.bytes_in
        if progress != self._progress or connection.reading_paused:
            self._progress = progress
            self._progress_at = now
            return
        waited = now - self._progress_at
        if not connection.request_done and not connection.writing_paused:
            if waited > self._plane.body_idle_timeout:
                self._refuse_upload(replies.REQUEST_TIMEOUT)
            return
        bound = timeouts.idle if connection.received else timeouts.first_byte
        if bound is not None and waited > bound:
            self._time_out()

    def _time_out(self) -> None:
        assert self._endpoint is not None
        self._served.meter.upstream_error(self._endpoint.replica, Failure.TIMEOUT_FIRST_BYTE.kind)
        if self._responding:
            self._cut("upstream")
        else:
            self._answer(replies.UPSTREAM_TIMEOUT)

    # --- tunnels

    def _start_tunnel(self, connection: UpstreamConnection) -> None:
        exchange = self._exchange
        client = exchange.connection
        transport = client.transport
        assert transport is not None
        exchange.close = True
        parts = [
            connection.status_line,
            *connection.head.lines,
            b"Connection: Upgrade\r\nUpgrade: %b\r\n" % exchange.upgrade,
            b"X-Request-Id: %b\r\n\r\n" % exchange.request_id,
        ]
        transport.write(b"".join(parts))
        early = connection.tunnel(transport.write, client.resume_tunnel)
        if early:
            transport.write(early)
        client.start_tunnel(connection)

    def tunnel_closed(self, connection: UpstreamConnection) -> None:
        exchange = self._exchange
        exchange.bytes_out = connection.received
        exchange.closed_by = "upstream"
        self._finish()


def _reply_of(failure: Failure) -> LocalReply:
    timed_out = failure in (Failure.TIMEOUT_CONNECT, Failure.TIMEOUT_FIRST_BYTE)
    return replies.UPSTREAM_TIMEOUT if timed_out else replies.UPSTREAM_ERROR


def _nowhere(data: bytes) -> None:
    """Bytes of an answer that is no longer passed on."""
