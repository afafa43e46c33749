"""Requests with a token that somebody else judges."""

from __future__ import annotations

from conversation import Message, get
from harness import Gateway

BEARER = "Authorization: Bearer sesame"


async def ask(gateway: Gateway, *fields: str, path: str = "/x?y=1") -> Message:
    client = await gateway.client()
    return await client.ask(get(path, *(fields or (BEARER,))))
