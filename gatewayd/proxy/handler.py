"""THE REQUEST PATH, top to bottom: what happens to a request from its head to its record.

Owns: the order. Does not own: each step (admit, forward, observe).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator, Mapping
from itertools import chain, count
from typing import TYPE_CHECKING, Final

from gatewayd.core import reply as replies
from gatewayd.core.auth import index_tokens
from gatewayd.core.clients import ClientAddresses
from gatewayd.core.headers import BadHead
from gatewayd.core.model import DstackAuth, Limits, Token, TokensAuth
from gatewayd.core.reply import NO_REPLICA, LocalReply
from gatewayd.core.routing import strip_prefix, unknown_host
from gatewayd.core.snapshot import Snapshot
from gatewayd.net.authority import Authority, authority_for
from gatewayd.net.buckets import BucketStore
from gatewayd.net.demand import DemandTable
from gatewayd.proxy import admit
from gatewayd.proxy.accesslog import AccessLog, Unread
from gatewayd.proxy.arrivals import Arrivals, could_not_begin
from gatewayd.proxy.forward import Forward
from gatewayd.proxy.head import read_head
from gatewayd.proxy.holding import Holding
from gatewayd.proxy.judging import Judging
from gatewayd.proxy.known import KnownHeads, know
from gatewayd.proxy.models import ModelEndpoint
from gatewayd.proxy.observe import Meter, Meters
from gatewayd.proxy.plane import Plane
from gatewayd.proxy.prompts import Prompts
from gatewayd.proxy.records import Records
from gatewayd.proxy.served import Live, Served

if TYPE_CHECKING:
    from gatewayd.proxy.connection import ClientConnection
    from gatewayd.proxy.exchange import Exchange

_CHALLENGES: Final = "/.well-known/acme-challenge/"


class Edge:
    """A worker's view of the gateway. `apply` swaps the world; running exchanges keep theirs."""

    def __init__(
        self,
        plane: Plane,
        limits: Limits,
        buckets: BucketStore,
        demand: DemandTable,
        access_log: AccessLog,
    ) -> None:
        self.plane = plane
        self.outbox = plane.outbox
        self.limits = limits
        self.buckets = buckets
        self.demand = demand
        self.access_log = access_log
        self.meters = Meters()
        self.records = Records(plane.loop, self.meters, demand, access_log)
        self.ended = self.records.put
        self.draining = False
        self.changed = asyncio.Event()  # set, and another one, with the next snapshot
        self.world = object()  # another whenever the same head may mean something else
        self.heads = KnownHeads()
        self.arrivals = Arrivals(plane.loop, self)
        self.authority: Authority | None = None
        self.tokens: Mapping[bytes, Token] = {}
        self.no_token = replies.UNAUTHENTICATED  # what is told who brings none
        self.https_port = 443  # at which a client that was sent there finds us
        self.challenges: Mapping[str, str] = {}  # of ACME (RFC 8555, 8.3): token -> answer
        self._addresses = ClientAddresses(())
        self._served: dict[str, Served] = {}  # by host
        self._endpoints: dict[str, ModelEndpoint] = {}  # by host
        self.prompts = Prompts()
        self.held_size = 0  # of bodies that are read for their model
        self._live: dict[str, Live] = {}  # by service
        self._new_id = request_ids(os.urandom(8)).__next__

    def apply(self, snapshot: Snapshot) -> None:
        """Make a snapshot the world of every request that begins from now on."""
        self.world = object()
        by_service: dict[str, Served] = {}
        served: dict[str, Served] = {}
        for host, target in snapshot.targets.items():
            key = target.service.key
            if key not in by_service:
                live = self._live.get(key)
                if live is None:
                    live = self._live[key] = Live(self.meters.of(key))
                if live.served is None or live.served.target is not target:
                    live.ejections.retain({e.id for e in target.upstream.endpoints})
                    live.served = Served(target, live)
                by_service[key] = live.served
            served[host] = by_service[key]
        self._served = served
        for key in [key for key in self._live if key not in by_service]:
            self._live.pop(key).served = None
        self.meters.keep(set(by_service))
        self._addresses = ClientAddresses(snapshot.trusted_proxies)
        self.plane.snapshot_changed()
        auth = snapshot.auth
        self._endpoints = {
            host: ModelEndpoint(target, self._live, forward_auth=auth is None or auth.forward)
            for host, target in snapshot.entrypoints.items()
        }
        self.tokens = index_tokens(auth.tokens) if isinstance(auth, TokensAuth) else {}
        # Clients of a dstack server know 403 only.
        dstack = isinstance(auth, DstackAuth)
        self.no_token = replies.FORBIDDEN if dstack else replies.UNAUTHENTICATED
        if self.authority is None or self.authority.auth != auth:
            if self.authority is not None:
                self.plane.spawn(self.authority.retire())
            self.authority = authority_for(auth)
        upstreams = [s.upstream for s in by_service.values()]
        endpoints = [e for u in upstreams for e in (*u.endpoints, *((u.router,) * bool(u.router)))]
        self.plane.keep_pools({e.address for e in endpoints if e is not None})
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    # --- one request

    def begin(self, exchange: Exchange) -> None:
        try:
            if self.admits(exchange):
                self.serve(exchange)
        except Exception:
            could_not_begin(exchange)

    def admits(self, exchange: Exchange) -> bool:
        try:
            again = exchange.known is not None
            reply = self._admit_again(exchange) if again else self._admit(exchange)
        except BadHead as error:
            reply = replies.bad_request(str(error))
        if reply is None:
            return True
        if reply.rejection:
            self.rejected(exchange, reply.rejection)
        exchange.answer(reply)
        return False

    def serve(self, exchange: Exchange) -> None:
        served = exchange.served
        if served is None:
            self._endpoints[exchange.host].begin(self, exchange)
        elif self.authority is not None and served.service.auth:
            Judging(self, exchange, served).start()
        else:
            self.forward(exchange, served)

    def _admit(self, exchange: Exchange) -> LocalReply | None:
        exchange.request_id = self._new_id()
        read_head(exchange, self._addresses)
        if self.challenges and (reply := self._challenge(exchange)):
            return reply
        served = self._served.get(exchange.host)
        if served is None:
            endpoint = self._endpoints.get(exchange.host)
            if endpoint is None:
                return unknown_host(exchange.method, exchange.target)
            return self.to_https(exchange) if endpoint.https and not exchange.secure else None
        exchange.served = served
        for step in admit.STEPS:
            if refusal := step(self, exchange, served):
                return refusal
        connection = exchange.connection
        heard, connection.heard = connection.heard, b""
        known = connection.known = know(heard, exchange, self.world)
        if known is not None:
            self.heads.keep(known, connection)
        return None

    def _admit_again(self, exchange: Exchange) -> LocalReply | None:
        """As before, but for what depends on the moment."""
        served = exchange.served
        assert served is not None
        if not exchange.request_id:
            exchange.request_id = self._new_id()
        if exchange.length > served.max_body_size:
            return replies.BODY_TOO_LARGE
        return admit.rate_limit(self, exchange, served)

    def challenge(self, answers: Mapping[str, str]) -> None:
        """What an authority of certificates is to be told from now on, by token."""
        self.challenges = answers
        self.world = object()

    def _challenge(self, exchange: Exchange) -> LocalReply | None:
        """Whatever the host: an authority asks before anybody is served there."""
        target = exchange.target
        known = target.startswith(_CHALLENGES)
        answer = self.challenges.get(target[len(_CHALLENGES) :]) if known else None
        return None if answer is None else LocalReply(200, message=answer)

    def to_https(self, exchange: Exchange) -> LocalReply:
        if exchange.target.startswith(_CHALLENGES):
            return replies.NO_CHALLENGE  # an authority would follow, and report what it finds there
        # Who came to a port of ours finds the other one; else the usual ones are in front of both.
        raw_host = exchange.connection.raw_host
        port = self.https_port if raw_host.rpartition(b":")[2].isdigit() else 443
        return replies.to_https(exchange.method, exchange.host, exchange.target, port)

    def forward(self, exchange: Exchange, served: Served) -> None:
        prefix = served.service.strip_prefix
        if prefix is not None:
            exchange.upstream_target = strip_prefix(exchange.target, prefix)
        self.demanded(exchange, served)
        if served.coming:
            Holding(self, exchange, served).start()
        else:
            Forward(self.plane, exchange, served).start()

    def dispatch(self, exchange: Exchange, served: Served) -> None:
        Forward(self.plane, exchange, served).start()

    def demanded(self, exchange: Exchange, served: Served) -> None:
        """It has been let through, to a replica or where one is missing: that scalers count."""
        exchange.demanded_ms = began_ms = int(exchange.started_at * 1000)
        exchange.column = served.column  # a snapshot may give the service another meanwhile
        self.demand.began(served.column, began_ms)

    def rejected(self, exchange: Exchange, reason: str) -> None:
        self.meter(exchange).rejected(reason)
        if reason == NO_REPLICA.rejection and exchange.served is not None:
            self.demanded(exchange, exchange.served)

    def meter(self, exchange: Exchange | None) -> Meter:
        served = exchange.served if exchange is not None else None
        return self.meters.nobody if served is None else served.meter

    def malformed(self, connection: ClientConnection, reply: LocalReply) -> bytes:
        """A request whose head could not be read: it belongs to no service and is no exchange."""
        nobody = self.meters.nobody
        nobody.totals.codes[reply.status] = nobody.totals.codes.get(reply.status, 0) + 1
        nobody.rejected(reply.rejection)
        content_type, body = replies.body(reply, as_json=False)
        request_id = self._new_id()
        unread = Unread(
            client=connection.peer,
            request_id=request_id,
            status=reply.status,
            bytes_out=len(body),
            now=time.monotonic(),
        )
        self.access_log.write([unread])
        return replies.head(
            reply,
            content_type,
            len(body),
            request_id=request_id,
            date=self.http_date(),
            close=True,
        ) + body  # fmt: skip

    def dropped(self, reason: str, exchange: Exchange | None) -> None:
        self.meter(exchange).rejected(reason)

    def http_date(self) -> bytes:
        return self.plane.date


def request_ids(worker: bytes) -> Iterator[bytes]:
    """A name of the worker and a number, all of one length. The number is not formatted each time,
    which would cost thrice as much."""
    ends = [b"%02x" % end for end in range(256)]
    starts = (b"%b%06x" % (worker.hex().encode(), start) for start in count())
    return chain.from_iterable(map(start.__add__, ends) for start in starts)
