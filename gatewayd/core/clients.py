"""Who the client is when trusted proxies stand in front.

Owns: reading X-Forwarded-For from the right (RFC 7239's advice for the older field).
Does not own: which proxies are trusted (configuration).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class ClientAddresses:
    """`any` is False when nobody is trusted, the common case, so that callers ask no further."""

    def __init__(self, trusted: Iterable[str]) -> None:
        self._networks: tuple[_Network, ...] = tuple(ipaddress.ip_network(c) for c in trusted)
        self._known: dict[str, bool] = {}
        self.any = bool(self._networks)

    def trusts(self, address: str) -> bool:
        known = self._known.get(address)
        if known is None:
            known = self._trusts(address)
            if len(self._known) < 4096:
                self._known[address] = known
        return known

    def _trusts(self, address: str) -> bool:
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
            parsed = parsed.ipv4_mapped
        return any(parsed in network for network in self._networks)

    def client(self, peer: str, forwarded_for: bytes | None) -> tuple[str, str]:
        """(the client's address, the chain to send on) for a request from a trusted `peer`.

        Walking from the right, the first address that is not trusted is the client: what stands
        left of it is the client's own claim and is cut off.
        """
        hops = [h.strip() for h in (forwarded_for or b"").decode("latin-1").split(",")]
        kept: list[str] = []
        for hop in reversed(hops):
            if not _is_address(hop):
                break
            kept.append(hop)
            if not self.trusts(hop):
                break
        kept.reverse()
        return (kept[0] if kept else peer), ", ".join([*kept, peer])


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
