"""What an ACME authority says, in an operator's words, and when to ask it again.

Owns: problem documents (RFC 8555, 6.7) and what to do about each, `Retry-After`, when a certificate
is due, how long to wait after a failure, which ways to prove a name a try takes. Does not own:
asking (control.acme_server).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final

LETS_ENCRYPT: Final = "https://acme-v02.api.letsencrypt.org/directory"

_PREFIX: Final = "urn:ietf:params:acme:error:"
_WORDS_MAX: Final = 400
# What is wrong with the name itself, whichever way it is proven.
_OF_THE_NAME: Final = frozenset({"caa", "rejectedIdentifier", "unsupportedIdentifier"})
_FIRST_WAIT_S: Final = 60.0
_WAIT_FACTOR: Final = 3.0
_LONGEST_WAIT_S: Final = 6 * 3600.0
_DUE_SHARE: Final = 2 / 3  # of the lifetime, where the authority suggests no time

_ADVICE: Final[Mapping[str, str]] = {
    "accountDoesNotExist": "the authority does not know the account any more; a new one is made",
    "alreadyRevoked": "it is revoked already",
    "badCSR": "the authority takes no such key or name",
    "badNonce": "the authority refuses its own nonces: is one address served by several of them?",
    "badPublicKey": "the authority takes no ECDSA P-256 account key",
    "badSignatureAlgorithm": "the authority takes no ES256 signatures",
    "caa": "a CAA record in DNS forbids this authority: allow it there, or choose another one",
    "connection": "the authority cannot reach this gateway: does the name's DNS record lead here, "
    "and is port 80 (http-01) or 443 (tls-alpn-01) open to the internet?",
    "dns": "DNS has no usable record of the name: add an A or AAAA record that leads to this "
    "gateway (for dns-01: what the hook added was not to be seen)",
    "externalAccountRequired": "the authority wants to know the account: set `eab_kid` and "
    "`eab_hmac_key`",
    "incorrectResponse": "somebody else answered the authority: does the name's DNS record lead "
    "here, and do ports 80 and 443 come to this gateway?",
    "invalidContact": "the authority does not take the address in `email`",
    "malformed": "the authority did not understand: is `server` the URL of an ACME directory?",
    "rateLimited": "a rate limit of the authority is reached",
    "rejectedIdentifier": "the authority issues nothing for such a name: is it a public one?",
    "serverInternal": "a fault on the authority's side",
    "tls": "the authority's handshake for tls-alpn-01 failed: does something in front of this "
    "gateway terminate TLS on port 443?",
    "unauthorized": "the authority found another answer than ours: does the name's DNS record "
    "lead here, and do ports 80 and 443 come to this gateway?",
    "unsupportedContact": "the authority does not take the address in `email`",
    "unsupportedIdentifier": "the authority issues nothing for such a name",
    "userActionRequired": "somebody has to agree to the authority's new terms",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """A refusal. `kind` is the last part of its type, "" for one that is none of ACME's."""

    kind: str
    detail: str
    status: int = 0
    retry_after: float | None = None  # seconds from when it was said

    def sentence(self) -> str:
        """What to fix, then the authority's own words."""
        advice = _ADVICE.get(self.kind, "")
        words = self.detail or (f"status {self.status}" if self.status else "no reason given")
        text = f"{advice} (it says: {words})" if advice else f"the authority says: {words}"
        if self.retry_after is not None and self.kind == "rateLimited":
            text += f"; tried again in {_span(self.retry_after)}"
        return text


def read_problem(document: object, status: int = 0, retry_after: float | None = None) -> Problem:
    """Of whatever came with a refusal; a problem of several parts is told by its first."""
    fields = document if isinstance(document, Mapping) else {}
    kind, detail = str(fields.get("type") or ""), str(fields.get("detail") or "")
    kind = kind.removeprefix(_PREFIX) if kind.startswith(_PREFIX) else ""
    parts = fields.get("subproblems")
    if isinstance(parts, list) and parts and kind in ("", "compound", "malformed"):
        first = read_problem(parts[0])
        kind, detail = first.kind or kind, f"{detail} {first.detail}".strip()
    # Control characters would break the log's lines.
    words = "".join(c if c.isprintable() else " " for c in detail)[:_WORDS_MAX]
    return Problem(kind, words, status, retry_after)


def read_retry_after(value: str | None, now: float) -> float | None:
    """Seconds from `now` (RFC 9110, 10.2.3); None where nothing usable was said."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    return None if (at := read_date(value)) is None else max(0.0, at - now)


def read_date(value: str) -> float | None:
    """An HTTP date as Unix seconds."""
    try:
        return parsedate_to_datetime(value).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


def ways(challenges: Sequence[str], failures: int) -> Sequence[str]:
    """How a try may prove a name, after so many failed ones in a row. Let's Encrypt allows five
    failed proofs of a name in an hour, and tells who has none left to wait: so all ways at once
    only the first time, later one a try, each in its turn."""
    if not failures or not challenges:
        return challenges
    return [challenges[failures % len(challenges)]]


def in_vain(challenge: str, failed: str, problem: Problem | None) -> bool:
    """Whether `challenge` would fail for what `failed` has failed for."""
    if problem is None:
        return False
    # The address that two of them go to; dns-01 is about a record of its own.
    same = problem.kind == "dns" and "dns-01" not in (challenge, failed)
    return same or problem.kind in _OF_THE_NAME


def due(not_before: float, not_after: float) -> float:
    """When to renew without the authority's advice: at two thirds of whatever lifetime it has."""
    return not_before + (not_after - not_before) * _DUE_SHARE


def due_in(start: float, end: float, not_after: float, chance: float) -> float:
    """When to renew in the window that the authority suggests (RFC 9773, 4.2); `chance` in
    [0, 1) spreads gateways over it. Never after the end, whatever was suggested."""
    return min(start + max(0.0, end - start) * chance, not_after)


def wait_after(failures: int, chance: float, retry_after: float | None = None) -> float:
    """Seconds until the next try, after so many failures in a row; `chance` in [0, 1)."""
    wait = min(_FIRST_WAIT_S * _WAIT_FACTOR ** min(failures - 1, 10), _LONGEST_WAIT_S)
    # Jitter only makes it longer: an authority's limit counts tries.
    return max(wait * (1 + chance / 4), retry_after or 0.0)


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
