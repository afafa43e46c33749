"""Who may use a service: the credential in a head, and what is known about it.

Owns: reading the bearer token, the verdict of a token list, how long an authority's word is kept.
Does not own: asking an authority (net.authority).
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
    STALE = "stale"  # nor could it here, but it was a yes not long ago, and counts as one


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


_ASK_AGAIN_S = 1.0  # who has not answered is asked again then, not by every request


class Judged:
    """What an authority said of one scope and token, and until when that counts. `failed`: asked
    again, it has not answered.

    Times are monotonic seconds.
    """

    __slots__ = ("ask_after", "failed", "fresh_until", "good_until", "verdict")

    def __init__(self, verdict: Verdict, now: float, cache: float, stale: float) -> None:
        self.verdict = verdict
        self.fresh_until = now + cache
        self.good_until = now + cache + stale if verdict is Verdict.YES else now + cache
        self.failed = False
        self.ask_after = now

    def verdict_at(self, now: float) -> Verdict:
        """What counts without asking; UNKNOWN: ask."""
        if now < self.fresh_until:
            return self.verdict
        return self.when_unknown(now) if now < self.ask_after else Verdict.UNKNOWN

    def when_unknown(self, now: float) -> Verdict:
        """The authority is down: a token that was good stays good for a bounded while."""
        if self.verdict is Verdict.YES and now < self.good_until:
            return Verdict.STALE
        return Verdict.UNKNOWN

    def not_answered(self, now: float) -> Verdict:
        """It was asked again, in vain."""
        self.failed = True
        self.ask_after = now + _ASK_AGAIN_S
        return self.when_unknown(now)
