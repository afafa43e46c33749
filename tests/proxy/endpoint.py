"""The endpoint of all models, and what clients say to it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from conversation import Message, Replica, get, post
from harness import Gateway

from gatewayd.core.entrypoint import Entrypoint, ModelEntry
from gatewayd.core.model import Token, TokensAuth

HOST = "gateway.example"
ALICE = TokensAuth((Token("alice", hashlib.sha256(b"sesame").digest()),))
CHAT = b'{"model": "m", "messages": []}'


def ask(method: str, path: str, *fields: str, body: bytes | None = None) -> bytes:
    if body is None:
        return get(path, *fields, host=HOST, method=method)
    return post(body, path, *fields, host=HOST)


def chat(body: bytes = CHAT, *fields: str, path: str = "/v1/chat/completions") -> bytes:
    return ask("POST", path, *fields, body=body)


def error(answer: Message) -> dict[str, Any]:
    assert answer["Content-Type"] == "application/json"
    found: dict[str, Any] = json.loads(answer.body)["error"]
    assert found.keys() == {"message", "type", "param", "code"}
    return found


async def open_endpoint(gateway: Gateway, **policy: Any) -> Replica:
    """The project's endpoint, with the model `m` of the service `chat`."""
    gateway.entrypoints.append(Entrypoint("main", HOST, auth=policy.pop("door", True)))
    gateway.models.append(ModelEntry("main", "m", "chat", 1700000000))
    return await gateway.serve(model="m", **policy)
