"""Who may use a service: the credential in a head, and what is known about it.

Owns: reading the bearer token, the verdict of a token list, how long an authority's word is kept.
Does not own: asking an authority (proxy.authority).
"""

from __future__ import annotations

import enum
import hashlib
import hmac
from collections.abc import Mapping

from gatewayd.core.model import Token


class Verdict(enum.Enum):
    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"  # the authority could not tell


def bearer_token(authorization: bytes | None) -> bytes | None:
    """The token of `Authorization: Bearer ...` (RFC 6750; the scheme in any case), or None."""
    if authorization is None:
        return None
    scheme, _, token = authorization.strip().partition(b" ")
    token = token.strip()
    if scheme.lower() != b"bearer" or not token or b" " in token:
        return None
    return token


def token_digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def index_tokens(tokens: tuple[Token, ...]) -> Mapping[bytes, Token]:
    return {token.sha256: token for token in tokens}


_NOBODY = bytes(32)


def known_token(index: Mapping[bytes, Token], token: bytes) -> Token | None:
    """The entry of a presented token. Only digests are compared, and in constant time: what a
    client can vary is the preimage, so neither the lookup nor the comparison leaks a token."""
    digest = hashlib.sha256(token).digest()
    found = index.get(digest)
    if not hmac.compare_digest(digest, _NOBODY if found is None else found.sha256):
        return None
    return found


class Judged:
    """What an authority said of one (service, token), and until when that counts.

    Times are monotonic seconds.
    """

    __slots__ = ("fresh_until", "good_until", "verdict")

    def __init__(self, verdict: Verdict, now: float, cache: float, stale: float) -> None:
        self.verdict = verdict
        self.fresh_until = now + cache
        self.good_until = now + cache + stale if verdict is Verdict.YES else now + cache

    def fresh(self, now: float) -> bool:
        return now < self.fresh_until

    def when_unknown(self, now: float) -> Verdict:
        """The authority is down: a token that was good stays good for a bounded while."""
        if self.verdict is Verdict.YES and now < self.good_until:
            return Verdict.YES
        return Verdict.UNKNOWN
