"""Answers that last: from now on they are passed on at the least price, and seldom looked at.

Owns: which ones, and how long nobody needs to look. Does not own: the way that they take then
(net.lane), the bounds (deadlines).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from gatewayd.net.lane import Lane
    from gatewayd.net.upstream import UpstreamConnection
    from gatewayd.proxy.exchange import Exchange

_SETTLING_S: Final = 1.0  # what may still take the lane is looked at as often


def settle(
    lane: Lane, exchange: Exchange, connection: UpstreamConnection, longest_s: float
) -> float:
    """For how many seconds nobody needs to look at the exchange, by its bounds `longest_s`."""
    client = exchange.connection
    # A client of HTTP/1.0 gets it without its framing.
    if connection.lasting and exchange.http11 and (way := client.straight()) is not None:
        connection.join_lane(lane, way)
    if not connection.in_lane:
        return min(longest_s, _SETTLING_S)
    client.rest()
    return longest_s
