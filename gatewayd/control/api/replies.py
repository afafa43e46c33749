"""How the admin address answers: bodies, statuses, and every error in one place.

Owns: the wire form of answers and errors, reading a body. Does not own: what is asked.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError

from gatewayd.config.errors import ConfigError
from gatewayd.control.conflicts import RefusedError
from gatewayd.control.keeper import NotSavedError

_log = logging.getLogger(__name__)

BODY_MAX: Final = 1024 * 1024
_BODY_TIMEOUT_S: Final = 10.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_Body = TypeVar("_Body", bound=BaseModel)


def reply(body: object, status: int = 200) -> web.Response:
    return web.Response(
        body=json.dumps(body).encode(), status=status, content_type="application/json"
    )


def ok(**more: object) -> web.Response:
    """What every successful write answers."""
    return reply({"status": "ok", **more})


def refuse(status: int, detail: object) -> web.Response:
    return reply({"detail": detail}, status)


class InvalidBodyError(Exception):
    """`errors` in the form that callers of the registry know: type, loc, msg, input."""

    def __init__(self, errors: list[dict[str, Any]]) -> None:
        super().__init__(errors)
        self.errors = errors


async def read_body(request: web.Request, model: type[_Body]) -> _Body:
    """Raises InvalidBodyError. No body is an empty object."""
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_S):
            raw = await request.read()
    except TimeoutError:
        raise web.HTTPRequestTimeout from None
    try:
        value = json.loads(raw) if raw else {}
        if b"\\u" in raw:
            # Half a surrogate pair is a character that no file and no header can hold.
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:  # the latter of thousands of brackets
        at = error.pos if isinstance(error, json.JSONDecodeError) else 0
        raise InvalidBodyError(
            [
                {
                    "type": "json_invalid",
                    "loc": ["body", at],
                    "msg": "JSON decode error",
                    "input": {},
                    "ctx": {"error": str(error)},
                }
            ]
        ) from error
    return validate(value, model, "body")


def validate(value: object, model: type[_Body], where: str) -> _Body:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise InvalidBodyError(
            [
                {
                    "type": entry["type"],
                    "loc": [where, *entry["loc"]],
                    "msg": entry["msg"],
                    "input": _masked(entry["input"], str((where, *entry["loc"])[-1])),
                }
                for entry in error.errors(include_url=False)
            ]
        ) from error


def _masked(value: object, key: str = "") -> object:
    """What was sent, without the private keys in it."""
    if key.endswith(("private_key", "token", "hmac_key")):
        return "***"
    if isinstance(value, dict):
        return {name: _masked(entry, str(name)) for name, entry in value.items()}
    if isinstance(value, list):
        return [_masked(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no such number
    return value if isinstance(value, str | int | float | None) else str(value)


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except RefusedError as error:
        return refuse(400, str(error))
    except NotSavedError as error:
        return refuse(507, str(error))
    except InvalidBodyError as error:
        return refuse(422, error.errors)
    except ConfigError as error:
        return refuse(400, str(error))
    except web.HTTPNotFound as error:
        return await _without_slash(request) or refuse(404, error.reason)
    except web.HTTPException as error:
        response = refuse(error.status, error.reason)
        if allow := error.headers.get("Allow"):
            response.headers["Allow"] = allow
        return response
    except Exception:
        _log.exception("admin: %s %s failed", request.method, request.path)
        response = web.Response(status=500, text="Internal Server Error")
        response.force_close()
        return response


async def _without_slash(request: web.Request) -> web.Response | None:
    """The way to a call that was written with a slash at its end."""
    path = request.rel_url.raw_path.rstrip("/")
    if not path or path == request.rel_url.raw_path:
        return None
    url = request.url.with_path(path, encoded=True).with_query(request.query)
    found = await request.app.router.resolve(request.clone(rel_url=url.relative()))
    if isinstance(found.http_exception, web.HTTPNotFound):
        return None
    return web.Response(status=307, headers={"Location": str(url)})
