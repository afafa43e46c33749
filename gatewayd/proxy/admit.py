"""The admission steps, in the order of nginx's phases; each gives a refusal or None.

Owns: what a request must satisfy before it is forwarded. Does not own: the order (handler),
the arithmetic of limits and tokens (core).

A limit counts requests without credentials too: it stands before auth.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gatewayd.core import reply as replies
from gatewayd.core.auth import Verdict, bearer_token, known_token
from gatewayd.core.ratelimit import longest_prefix, retry_after_s
from gatewayd.core.reply import LocalReply
from gatewayd.core.routing import normal_path, path_allowed
from gatewayd.proxy.served import Served

if TYPE_CHECKING:
    from gatewayd.net.authority import Authority
    from gatewayd.proxy.exchange import Exchange
    from gatewayd.proxy.handler import Edge


def https(edge: Edge, exchange: Exchange, served: Served) -> LocalReply | None:
    return edge.to_https(exchange) if served.https and not exchange.secure else None


def body_size(edge: Edge, exchange: Exchange, served: Served) -> LocalReply | None:
    if exchange.length > served.max_body_size:
        return replies.BODY_TOO_LARGE
    return None


def preflight(edge: Edge, exchange: Exchange, served: Served) -> LocalReply | None:
    if served.cors is None or exchange.method != "OPTIONS":
        return None
    # Every answer of this service says the rest.
    return LocalReply(204, headers=((b"Access-Control-Max-Age", b"%d" % served.cors.max_age),))


def path(edge: Edge, exchange: Exchange, served: Served) -> LocalReply | None:
    """Decides the path that prefix rules see (BadHead when it is ambiguous) and the allow-list."""
    if not served.by_path:
        exchange.rule_path = "/"
        return None
    exchange.rule_path = normal_path(exchange.target)
    allowed = served.allowed_paths
    if allowed is not None and not path_allowed(exchange.rule_path, allowed):
        return replies.PATH_FORBIDDEN
    if served.denied_paths and path_allowed(exchange.rule_path, served.denied_paths):
        return replies.PATH_FORBIDDEN
    return None


def bucket(edge: Edge, exchange: Exchange, served: Served) -> None:
    """Finds the limit that it counts for."""
    rule = longest_prefix(served.limits, exchange.rule_path) if served.limits else None
    if rule is None:
        return
    if rule.header is None:
        value = exchange.client.encode("latin-1", "replace")
    elif rule.header == "authorization":
        # One token is one key: else `bearer`, `BEARER` and a second space had buckets of their own.
        presented = exchange.head.noted.get(b"authorization", b"")
        value = bearer_token(presented) or presented
    else:
        value = exchange.message.headers.get(rule.header, "").encode("utf-8", "surrogateescape")
    if value:  # nginx does not account an empty key
        exchange.bucket = rule, rule.key(value)


def rate_limit(edge: Edge, exchange: Exchange, served: Served) -> LocalReply | None:
    if exchange.bucket is None:
        return None
    rule, key = exchange.bucket
    now_ms = int(exchange.started_at * 1000)
    wait_ms = edge.buckets.take(key, now_ms, rule.rate, rule.burst)
    return replies.too_many(retry_after_s(wait_ms)) if wait_ms else None


def token(edge: Edge, exchange: Exchange, served: Served) -> LocalReply | None:
    """Auth by a token list. With an authority only the presence of a token is judged here."""
    if not served.service.auth:
        return None
    presented = bearer_token(exchange.head.noted.get(b"authorization"))
    if presented is None:
        return edge.no_token
    if edge.authority is not None:
        return None
    known = known_token(edge.tokens, presented)
    if known is None:
        return replies.UNAUTHENTICATED
    exchange.token_name = known.name
    return None


def replica(edge: Edge, exchange: Exchange, served: Served) -> LocalReply | None:
    """Where an authority is asked, this comes after its word: else whoever has any token at all
    could make a service without replicas start some."""
    if edge.authority is not None and served.service.auth:
        return None
    return served.unready


async def ask(authority: Authority, key: str, token: bytes, exchange: Exchange) -> Verdict:
    return await authority.ask(
        key, token, method=exchange.method, uri=exchange.target, host=exchange.host
    )


def of_verdict(verdict: Verdict) -> LocalReply | None:
    if verdict is Verdict.YES or verdict is Verdict.STALE:
        return None
    return replies.FORBIDDEN if verdict is Verdict.NO else replies.AUTH_UNAVAILABLE


# Of a head that has passed them in the same world, only its size and limit are judged again.
STEPS = (https, body_size, preflight, path, bucket, rate_limit, token, replica)
