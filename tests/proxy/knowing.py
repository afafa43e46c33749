"""A service that says what it got, and whether a head of its client is remembered."""

from __future__ import annotations

import hashlib
from typing import Any

from conversation import Message, Wire, reply
from harness import Gateway

from gatewayd.core.model import Token, TokensAuth

BEARER = "Authorization: Bearer sesame"


def tokens(*values: bytes) -> TokensAuth:
    return TokensAuth(
        tuple(Token(v.decode(), hashlib.sha256(v).digest()) for v in values), forward=True
    )


def knows(gateway: Gateway) -> bool:
    """Whether the gateway's only client has a head that is remembered."""
    (connection,) = gateway.server.each()
    return connection.known is not None


async def served(gateway: Gateway, **policy: Any) -> tuple[list[Message], Wire]:
    """A service that answers with what it got, and a client of it."""
    replica = await gateway.serve(**policy)
    replica.answers = lambda request: reply(request.body or request.target.encode())
    return replica.requests, await gateway.client()
