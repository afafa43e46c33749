"""Open connections per client address, where they are bounded.

Owns: the counts of one process. Does not own: the bound (Limits), the connections (connection).
"""

from __future__ import annotations

from typing import Final

UNIX_PEER: Final = "unix:"  # nginx's word for who has no address


class PeerCounts:
    """How many connections each address holds."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<PeerCounts {len(self._counts)} addresses>"

    def admit(self, peer: str, bound: int) -> bool:
        """False when `peer` has `bound` connections (0: any number); else it is counted."""
        if not bound or peer == UNIX_PEER:
            return True
        count = self._counts.get(peer, 0)
        if count >= bound:
            return False
        self._counts[peer] = count + 1
        return True

    def leave(self, peer: str) -> None:
        count = self._counts.get(peer, 0)
        if count > 1:
            self._counts[peer] = count - 1
        elif count:
            del self._counts[peer]
