"""A request that waits for the word of whoever judges its token.

Owns: what follows from the word. Does not own: asking (net.authority), what is asked (admit).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gatewayd.core.auth import Verdict, bearer_token
from gatewayd.net.authority import Authority
from gatewayd.proxy import admit
from gatewayd.proxy.waiting import Waiting

if TYPE_CHECKING:
    from gatewayd.proxy.exchange import Exchange
    from gatewayd.proxy.handler import Edge
    from gatewayd.proxy.served import Served


class Judging(Waiting):
    """An exchange that waits for an authority's word."""

    def __init__(self, edge: Edge, exchange: Exchange, served: Served) -> None:
        super().__init__(edge.plane, exchange)
        self._edge = edge
        self._served = served

    def start(self) -> None:
        edge, exchange, served = self._edge, self._exchange, self._served
        assert edge.authority is not None
        token = bearer_token(exchange.head.noted.get(b"authorization"))
        assert token is not None  # admit.token has refused its absence
        verdict = edge.authority.known(served.key, token)
        if verdict is Verdict.UNKNOWN:
            self._wait(self._ask(edge.authority, token))
        else:
            self._go_on(verdict)

    async def _ask(self, authority: Authority, token: bytes) -> None:
        self._go_on(await admit.ask(authority, self._served.key, token, self._exchange))

    def _go_on(self, verdict: Verdict) -> None:
        exchange = self._exchange
        exchange.running = None
        if verdict is Verdict.STALE:
            self._served.meter.auth_stale()
        refusal = admit.of_verdict(verdict) or self._served.unready
        if refusal is None:
            self._edge.forward(exchange, self._served)
        else:
            self._edge.rejected(exchange, refusal.rejection)
            exchange.answer(refusal)
