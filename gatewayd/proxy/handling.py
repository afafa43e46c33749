"""What a client connection asks of whoever serves its requests: the edge, or a port of the bridge.

Owns: the contract. Does not own: either side of it (connection; handler, bridge.handler).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from gatewayd.core.model import Limits
from gatewayd.core.reply import LocalReply
from gatewayd.net.outbox import Outbox

if TYPE_CHECKING:
    from gatewayd.proxy.arrivals import Arrivals
    from gatewayd.proxy.connection import ClientConnection
    from gatewayd.proxy.exchange import Exchange
    from gatewayd.proxy.known import KnownHeads


class Handler(Protocol):
    """What a plane does with requests. `begin` may end the exchange before it returns."""

    limits: Limits
    draining: bool
    world: object  # what a head meant, it means as long as this is the same
    heads: KnownHeads
    outbox: Outbox
    arrivals: Arrivals

    def begin(self, exchange: Exchange) -> None:
        """`admits`, and `serve` if so."""

    def admits(self, exchange: Exchange) -> bool:
        """Whether it is to be served; if not, it has been answered."""
        ...

    def serve(self, exchange: Exchange) -> None: ...

    def ended(self, exchange: Exchange) -> None: ...

    def malformed(self, connection: ClientConnection, reply: LocalReply) -> bytes:
        """Counts a request that could not be read; gives the answer's bytes."""

    def dropped(self, reason: str, exchange: Exchange | None) -> None:
        """Counts a connection that a bound ended without an answer."""

    def http_date(self) -> bytes: ...
