"""One question to a router, where a request should go: asked, answered over the bridge, let go.

Owns: tokens that wait for an answer, the router's copy of the request, its end, the count of
requests that the router has in flight. Does not own: what follows from an answer (steering), the
other end of the link (bridge.claims).
"""

from __future__ import annotations

import asyncio
import enum
import secrets
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from gatewayd.core import http2
from gatewayd.core.steering import HELLO, finish, read_claim, token
from gatewayd.net.link import Link
from gatewayd.net.pool import ConnectFailedError
from gatewayd.proxy.hop import question_head
from gatewayd.proxy.payload import BodyRefusedError
from gatewayd.proxy.upload import Body

if TYPE_CHECKING:
    from gatewayd.core.model import Endpoint
    from gatewayd.net.mux import Mux
    from gatewayd.net.mux_pool import MuxPool
    from gatewayd.net.mux_stream import Stream
    from gatewayd.proxy.exchange import Exchange
    from gatewayd.proxy.plane import Plane
    from gatewayd.proxy.served import Served


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
    EJECTED = "ejected"  # it chose one that fails, of which it knows nothing
    SKIPPED = "skipped"  # not asked, because it has just not answered others in time
    ABANDONED = "abandoned"  # the client left, or its body did not come, before the answer


class Asker:
    """The worker's end of the link to the bridge, and the questions that wait for an answer."""

    def __init__(self, loop: asyncio.AbstractEventLoop, slot: int) -> None:
        self._loop = loop
        self._slot = slot
        self._nonce = secrets.randbits(63)
        self._count = 0
        self._link: Link | None = None
        self._heard = False
        self._open: dict[bytes, Question] = {}

    def __repr__(self) -> str:
        return f"<Asker {'up' if self.up else 'down'}, {len(self._open)} open>"

    @property
    def up(self) -> bool:
        """Whether the bridge would answer: it has said that it listens on this link."""
        return self._heard

    def link(self, fd: int) -> None:
        """A bridge lives now; the claims of its predecessor have gone with it."""
        if self._link is not None:
            self._link.close()
            self._lost()
        self._link = Link(socket.socket(fileno=fd), self._on_frame, self._lost, self._loop)

    def open(self, question: Question) -> bytes:
        self._count += 1
        value = token(self._slot, self._nonce, self._count)
        self._open[value] = question
        return value

    def forget(self, value: bytes) -> None:
        """Nobody waits for this answer any more; should it come, it is finished at once."""
        self._open.pop(value, None)

    def finish(self, value: bytes) -> None:
        """The exchange is over: the bridge may let the router go."""
        if self._link is not None:
            self._link.send(finish(value))

    def close(self) -> None:
        self._heard = False
        if self._link is not None:
            self._link.close()

    def _on_frame(self, frame: bytes) -> None:
        if frame == HELLO:
            self._heard = True
            return
        said = read_claim(frame)
        if said is None:
            return
        value, replica = said
        question = self._open.pop(value, None)
        if question is None:
            self.finish(value)  # the answer came too late
        else:
            question.claimed(replica)

    def _lost(self) -> None:
        self._heard = False
        for question in list(self._open.values()):
            question.bridge_lost()


_ASKING, _CLAIMED, _OVER = range(3)


class Question:
    """Tells once how it ended: `chosen(replica)` or `failed(outcome)`, unless closed before.

    `reading`: it waits for the client's body, since `since`; else for the router.
    """

    __slots__ = (
        "_body",
        "_chosen",
        "_counted",
        "_exchange",
        "_failed",
        "_plane",
        "_router",
        "_served",
        "_state",
        "_stream",
        "_task",
        "_token",
        "reading",
        "since",
    )

    def __init__(
        self,
        plane: Plane,
        exchange: Exchange,
        served: Served,
        body: Body,
        *,
        chosen: Callable[[str], None],
        failed: Callable[[Outcome], None],
    ) -> None:
        assert served.router is not None
        self._plane = plane
        self._exchange = exchange
        self._served = served
        self._router: Endpoint = served.router
        self._body = body
        self._chosen = chosen
        self._failed = failed
        self._state = _ASKING
        self._stream: Stream | None = None
        self._task: asyncio.Task[None] | None = None
        self.reading = False
        self.since = plane.loop.time()
        self._token = plane.asker.open(self)
        plane.loads.add(self._router.index)
        self._counted = True

    def __repr__(self) -> str:
        return f"<Question {('asking', 'claimed', 'over')[self._state]}>"

    @property
    def asking(self) -> bool:
        """Whether no answer has come."""
        return self._state == _ASKING

    # --- asking

    def ask(self) -> None:
        pool = self._plane.mux_pool(self._router)
        mux = pool.take()
        if mux is None:
            self._task = self._plane.spawn(self._connect(pool))
        else:
            self._send(mux)

    async def _connect(self, pool: MuxPool) -> None:
        try:
            mux = await pool.connect(self._served.steer_timeout)
        except ConnectFailedError:
            self._task = None
            self._fail(Outcome.ROUTER_DOWN)
            return
        self._task = None
        self._send(mux)

    def _send(self, mux: Mux) -> None:
        try:
            body = self._body.plain()
        except BodyRefusedError as refused:
            self._body.refuse(refused.reply)
            return
        if body is not None and len(body) > self._served.steer_body_limit:
            self._fail(Outcome.BODY_LIMIT)
            return
        head = question_head(self._exchange, self._served, self._token)
        if len(head) > http2.FRAME_SIZE:  # a routing key that no router takes
            self._fail(Outcome.REFUSED)
            return
        stream = self._stream = mux.post(self, head, body)
        if body is None:
            self._task = self._plane.spawn(self._send_body(stream), self._exchange)

    async def _send_body(self, stream: Stream) -> None:
        """The router needs the whole request to decide. What is passed on to it is kept for the
        replica, so nothing is read twice and held once; a body that grows too large is given to
        a replica of our own choice as far as it has come, and relayed from there on."""
        body = self._body
        self._exchange.send_continue()
        for data in body.kept:
            stream.write(data)
        try:
            while data := await self._read():
                if body.kept_size > self._served.steer_body_limit:
                    self._task = None
                    self._fail(Outcome.BODY_LIMIT)
                    return
                stream.write(data)
                await stream.drained()
        except BodyRefusedError as refused:
            self._task = None
            body.refuse(refused.reply)
            return
        stream.write(b"", last=True)
        self._task = None

    async def _read(self) -> bytes:
        """A slow client is not a slow router: its time is not counted against the router's."""
        self.reading = True
        self.since = self._plane.loop.time()
        data = await self._body.read()
        self.reading = False
        self.since = self._plane.loop.time()
        return data

    # --- answers

    def claimed(self, replica: str) -> None:
        """The bridge has seen the request on this replica's port."""
        self._state = _CLAIMED
        self._stop_sending()  # a router that needs no body may have answered before its end
        self._chosen(replica)

    def bridge_lost(self) -> None:
        self._fail(Outcome.BRIDGE_DOWN)

    def close(self) -> None:
        """Let the router go, however far it is: through the bridge where that holds the request,
        else by hanging up."""
        if self.asking:
            self._over()
            self._hang_up()
        elif self._state == _CLAIMED:
            self._over()
            self._plane.asker.finish(self._token)

    def _fail(self, outcome: Outcome) -> None:
        if self.asking:
            failed = self._failed
            self._over()
            self._hang_up()
            failed(outcome)

    def _over(self) -> None:
        """It may outlive its exchange for a moment, and must not keep it."""
        self._state = _OVER
        self._chosen = self._failed = _nobody
        self._plane.asker.forget(self._token)

    def _hang_up(self) -> None:
        self._stop_sending()
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.cancel()
        self._uncount()

    def _stop_sending(self) -> None:
        task, self._task = self._task, None
        self.reading = False
        if task is not None:
            task.cancel()

    def _uncount(self) -> None:
        """Once, when the router works on it no more."""
        if self._counted:
            self._counted = False
            self._plane.loads.done(self._router.index)

    # --- Listener: what the router answers is of no interest beyond that it came

    def answered(self) -> None:
        self._stream = None
        self._uncount()
        self._fail(Outcome.REFUSED)

    def broken(self) -> None:
        self._stream = None
        self._uncount()
        self._fail(Outcome.ROUTER_DOWN)


def _nobody(answer: object) -> None:
    """Who asked does not listen any more."""
