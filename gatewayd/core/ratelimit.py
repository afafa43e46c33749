"""Leaky buckets with the meaning of nginx's `limit_req zone=... burst=N nodelay`.

Owns: the arithmetic, which limit covers a path, the name of a bucket. Does not own: where
buckets live (net.buckets), who is limited and how that is said (proxy.admit).

Follows ngx_http_limit_req_module.c to the integer: time in milliseconds, requests and rates in
thousandths, every division rounded down. A bucket is `excess` (thousandths of a request above
the rate) at the time of its last accepted request; a refused request leaves no trace in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

from gatewayd.core.frames import by_fields
from gatewayd.core.model import RateLimit

KEY_SIZE = 16
_MAX_BURST = 1_000_000_000  # keeps excess far inside the 64 bits a stored bucket has for it
_MAX_RPS = 1e15  # every finite rate, and one above it limits nobody anyway, has an integer


@by_fields
@dataclass(frozen=True, slots=True)
class Rule:
    """A `RateLimit` of one service, made ready for the request path."""

    prefix: str
    header: str | None  # as in RateLimit: None is the client's address
    rate: int  # thousandths of a request per second
    burst: int
    tag: bytes  # names the service and prefix: each rule has its own buckets

    def key(self, value: bytes) -> bytes:
        """The bucket of one client address or header value. Absent and empty values have no
        bucket: they are not limited."""
        return blake2b(self.tag + value, digest_size=KEY_SIZE).digest()


def compile_limits(service_key: str, limits: Iterable[RateLimit]) -> tuple[Rule, ...]:
    """The rules of a service, longest prefix first."""
    rules = (
        Rule(
            prefix=limit.prefix,
            header=limit.header,
            rate=rate_milli(limit.rps),
            burst=min(limit.burst, _MAX_BURST),
            tag=blake2b(f"{service_key}\0{limit.prefix}".encode(), digest_size=KEY_SIZE).digest(),
        )
        for limit in limits
    )
    return tuple(sorted(rules, key=lambda rule: len(rule.prefix), reverse=True))


def rate_milli(rps: float) -> int:
    """Thousandths of a request per second, rounded down: what nginx makes of `rate=<n>r/m`
    for every rate that can be written so."""
    return max(1, int(min(rps, _MAX_RPS) * 1000 + 1e-6))  # 1e-6: 1.001 * 1000 is 1000.9999999999999


def longest_prefix(rules: tuple[Rule, ...], path: str) -> Rule | None:
    """The one rule that covers a path, as nginx chooses a location: the longest plain string
    prefix (`/a` covers `/abc`). `rules` as `compile_limits` orders them."""
    for rule in rules:
        if path.startswith(rule.prefix):
            return rule
    return None


def take(excess: int, last_ms: int, now_ms: int, rate: int, burst: int) -> tuple[int, int, int]:
    """Ask a known bucket for one request: (wait_ms, excess, last_ms).

    wait_ms 0 is yes, and the bucket becomes (excess, last_ms); else it is the time until a
    request would pass if no other came, and the bucket stays as it was. The first request of
    a bucket is not asked: it passes and leaves (0, now_ms).
    """
    elapsed = now_ms - last_ms
    if elapsed < 0:
        # Another process has read the clock later and written first; nginx's rule, and like
        # nginx the later time stays. Beyond a minute it takes the clock for having been set.
        return _take_backwards(excess, last_ms, now_ms, rate, burst)
    level = excess - rate * elapsed // 1000 + 1000
    if level > burst * 1000:
        return _due(excess, rate, burst) - elapsed, excess, last_ms
    return 0, level if level > 0 else 0, now_ms


def _take_backwards(
    excess: int, last_ms: int, now_ms: int, rate: int, burst: int
) -> tuple[int, int, int]:
    jumped = now_ms - last_ms < -60_000
    level = max(0, excess - (rate // 1000 if jumped else 0) + 1000)
    if level > burst * 1000:
        return last_ms - now_ms + _due(excess, rate, burst), excess, last_ms
    return 0, level, now_ms if jumped else last_ms


def _due(excess: int, rate: int, burst: int) -> int:
    """Milliseconds after its last accepted request at which a full bucket takes the next."""
    over = excess + 1000 - burst * 1000
    return -(-over * 1000 // rate)  # rounded up: the first ms at which enough has leaked


def retry_after_s(wait_ms: int) -> int:
    """`Retry-After` in whole seconds: never earlier than the bucket allows, never 0."""
    return max(1, -(-wait_ms // 1000))
