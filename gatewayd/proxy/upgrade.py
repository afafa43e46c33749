"""Tunnels: after a replica's 101, bytes pass both ways unparsed (WebSocket and others).

Owns: the switch. Does not own: the hop before it (forward), the client's half (connection).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gatewayd.proxy.hop import switching_head

if TYPE_CHECKING:
    from gatewayd.net.upstream import UpstreamConnection
    from gatewayd.proxy.exchange import Exchange


def start_tunnel(exchange: Exchange, connection: UpstreamConnection) -> None:
    """Pass on the 101, then what came with it, then everything. Idle time is bounded by the
    sweep of the forward, which goes on; closing either side closes the other."""
    client = exchange.connection
    exchange.close = True
    client.open_ended()
    write = client.stream()
    write(switching_head(exchange, connection))
    early = connection.tunnel(write, client.resume_tunnel)
    if early:
        connection.received += len(early)
        write(early)
    client.start_tunnel(connection)
