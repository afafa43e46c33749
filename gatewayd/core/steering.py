"""What worker and bridge say about a request that a router only decides on.

Owns: tokens and frames. Does not own: how they travel (net.link), what follows (proxy.steering,
bridge.claims).

A worker sends the router a request with a token; the port of the bridge where it arrives is the
decision. The bridge claims the token for the port's replica, keeps the router's request open, and
finishes it when the worker says that the exchange has ended. A request without a token is one that
the router carries.
"""

from __future__ import annotations

import re
from typing import Final

HELLO: Final = b"H"  # the bridge's first frame on a link: from now on it claims for this worker
_TOKEN: Final = re.compile(rb"s([0-9]{1,5})\.[0-9]{1,20}\.[0-9a-f]{1,16}")
_CLAIM: Final = b"C"
_FINISH: Final = b"F"


def token(slot: int, nonce: int, number: int) -> bytes:
    """`nonce` is the worker's own secret: with it no two workers ever ask alike, and no other
    process of the machine can answer in a router's place."""
    return b"s%d.%d.%x" % (slot, nonce, number)


def asking_slot(value: bytes) -> int | None:
    """The slot whose worker asks, or None when the value is no such token."""
    found = _TOKEN.fullmatch(value)
    return None if found is None else int(found[1])


def claim(token: bytes, replica: str) -> bytes:
    return _CLAIM + token + b" " + replica.encode()


def read_claim(frame: bytes) -> tuple[bytes, str] | None:
    """(token, replica id), or None for a frame that is no claim."""
    if frame[:1] != _CLAIM:
        return None
    token, _, replica = frame[1:].partition(b" ")
    return token, replica.decode()


def finish(token: bytes) -> bytes:
    return _FINISH + token


def read_finish(frame: bytes) -> bytes | None:
    return frame[1:] if frame[:1] == _FINISH else None
