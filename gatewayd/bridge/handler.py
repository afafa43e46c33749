"""What the bridge does with a request that a router sends to one of its ports.

Owns: the port's answer to probes, the hop to its replica, telling the edge how it went.
Does not own: the relay (proxy), which port stands for which replica (control).

The bridge knows what the router cannot tell apart: a replica that refused (nothing was sent, the
edge may go elsewhere) from one that answered badly. It says so in fields that the router passes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from gatewayd.bridge.carried import carried
from gatewayd.bridge.claims import Claims
from gatewayd.bridge.peers import Peers, make_true
from gatewayd.core.headers import BadHead, scan_request
from gatewayd.core.model import Limits, Service, Timeouts, Upstream
from gatewayd.core.reply import LocalReply, bad_request
from gatewayd.core.snapshot import BridgePort, Target
from gatewayd.core.steering import asking_slot
from gatewayd.proxy.arrivals import Arrivals
from gatewayd.proxy.connection import ClientConnection
from gatewayd.proxy.exchange import Exchange
from gatewayd.proxy.forward import Forward
from gatewayd.proxy.hop import FAILURE_FIELD
from gatewayd.proxy.known import KnownHeads
from gatewayd.proxy.observe import Meter
from gatewayd.proxy.plane import Plane
from gatewayd.proxy.served import Live, Served

if TYPE_CHECKING:
    from gatewayd.bridge.connection import RouterConnection

# The edge has applied the operator's bounds; the router's own requests are not to be cut here.
LIMITS: Final = Limits(
    header_size=64 * 1024,
    request_line_size=32 * 1024,
    headers=256,
    keepalive_timeout=600.0,
    body_idle_timeout=600.0,
    write_timeout=3600.0,
)
_NO_BOUND: Final = 1 << 62
_HEALTHY: Final = LocalReply(200, message="OK")
_UNCLAIMED: Final = LocalReply(503, message="?", headers=((FAILURE_FIELD, b"unclaimed"),))


class PortHandler:
    """Serves one port. `draining`: its replica is gone, so connections end with their request."""

    def __init__(self, plane: Plane, claims: Claims, peers: Peers, port: BridgePort) -> None:
        self.limits = LIMITS
        self.draining = False
        self.world = object()
        self.heads = KnownHeads()  # none: a router keeps its connections, and each knows its own
        self._plane = plane
        self.outbox = plane.outbox
        self.arrivals = Arrivals(plane.loop, self)
        self._claims = claims
        self._peers = peers
        self._live = Live(Meter())  # the edge counts; a second count would double it
        self.apply(port)

    def __repr__(self) -> str:
        return f"<PortHandler {self.port.port} {self.port.endpoint.address}>"

    def apply(self, port: BridgePort) -> None:
        self.port = port
        self.world = object()
        project, _, name = port.service.partition("/")
        timeouts = Timeouts(
            connect=port.connect_timeout,
            first_byte=port.first_byte_timeout,
            idle=port.idle_timeout,
        )
        service = Service(
            project, name, (), client_max_body_size=_NO_BOUND, timeouts=timeouts
        )  # fmt: skip
        target = Target(
            service=service,
            upstream=Upstream((port.endpoint,)),
            allowed_paths=None,
            openai_errors=False,
            forward_auth=False,  # what arrives is the router's own key
        )
        self._served = Served(target, self._live)
        self._served.from_bridge = True
        self._served.refuse_redirects = True
        # Of a decode's error to a stream, a router makes another text and keeps the size it had.
        self._served.unsized_errors = port.peer_fields is not None
        field = port.token_header or b"-"
        self._token_field = field.decode()
        self._token = re.compile(rb"\r\n(?i:%b):[ \t]*([!-~]+)[ \t]*\r\n" % re.escape(field))
        self._drop = frozenset((port.token_header,)) if port.token_header else frozenset()

    def token_in(self, head: bytes) -> bytes | None:
        """The token of a request that only asks where it arrives."""
        found = self._token.search(head)
        return None if found is None or asking_slot(found[1]) is None else found[1]

    def claim(self, connection: RouterConnection, token: bytes) -> bool:
        return self._claims.begin(connection, token, self.port.endpoint.replica)

    def begin(self, exchange: Exchange) -> None:
        """A request that the router carries."""
        if self.admits(exchange):
            self.serve(exchange)

    def serve(self, exchange: Exchange) -> None:
        Forward(self._plane, exchange, self._served).start()

    def admits(self, exchange: Exchange) -> bool:
        if exchange.known is not None:
            return True
        try:
            self._read_head(exchange)
        except BadHead as error:
            exchange.answer(bad_request(str(error)))
            return False
        exchange.served = self._served
        if exchange.target == "/health" and exchange.method == "GET":
            # Engines may generate a token for it; that it is registered is our word.
            exchange.answer(_HEALTHY)
            return False
        asked = exchange.message.headers.get(self._token_field, "").encode("latin-1", "replace")
        if asking_slot(asked) is not None:
            # In a form that the connection does not read: it must not be carried all the same.
            exchange.answer(_UNCLAIMED)
            return False
        fields = self.port.peer_fields
        if fields is not None and exchange.length:
            refusal = make_true(exchange, self._peers, self.port, fields)
            if refusal is not None:
                exchange.answer(refusal)
                return False
        elif exchange.length:
            connection = exchange.connection
            connection.known = carried(connection.heard, exchange, self.world)
        return True

    def _read_head(self, exchange: Exchange) -> None:
        exchange.head = head = scan_request(exchange.message.raw_headers, self._drop)
        noted = head.noted
        length = noted.get(b"content-length")
        if exchange.message.chunked:
            exchange.length = -1
        elif length is not None:
            exchange.length = int(length)
        exchange.host = noted.get(b"host", b"localhost").decode("latin-1")
        exchange.request_id = noted.get(b"x-request-id", b"")

    def ended(self, exchange: Exchange) -> None:
        """The edge keeps the record of an exchange."""
        if self.port.peer_fields is not None:
            self._peers.halves.ended(exchange)

    def malformed(self, connection: ClientConnection, reply: LocalReply) -> bytes:
        # A router probes each new target with an HTTP/2 preface; closing is the answer.
        return b""

    def dropped(self, reason: str, exchange: Exchange | None) -> None:
        """The bridge has bounds of its own only against what should not happen."""

    def http_date(self) -> bytes:
        return self._plane.date
