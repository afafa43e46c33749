"""Answers the gateway makes itself: which status, code and words, in which shape.

Owns: `LocalReply` and its body. Does not own: when one is due (core.routing, proxy.admit).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Final

_TYPES: Final = {
    "invalid_api_key": "authentication_error",
    "forbidden": "permission_error",
    "not_found": "not_found_error",
    "rate_limit_exceeded": "rate_limit_error",
}


@dataclass(frozen=True, slots=True)
class LocalReply:
    """`rejection` is the metrics' reason, empty when the reply rejects nothing.

    `close` ends the connection after the reply: what follows on it cannot be trusted or read.
    `document` is a JSON document that is sent instead of words.
    """

    status: int
    code: str = ""
    message: str = ""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    rejection: str = ""
    retry_after_s: int = 0
    close: bool = False
    document: bytes = b""


def status_line(status: int) -> bytes:
    line = _STATUS_LINES.get(status)
    if line is None:
        line = b"HTTP/1.1 %d Unknown\r\n" % status
    return line


_STATUS_LINES: Final = {
    int(status): b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus
}


def body(reply: LocalReply, *, as_json: bool) -> tuple[bytes, bytes]:
    """(content type, body): a document, an error in OpenAI's shape, or one line of text."""
    if reply.document:
        return b"application/json", reply.document
    if not reply.code:
        text = f"{reply.message}\n" if reply.message else ""
        return b"text/plain; charset=utf-8", text.encode()
    if not as_json:
        return b"text/plain; charset=utf-8", f"{reply.message} ({reply.code})\n".encode()
    kind = _TYPES.get(reply.code) or (
        "server_error" if reply.status >= 500 else "invalid_request_error"
    )
    error = {"message": reply.message, "type": kind, "param": None, "code": reply.code}
    return b"application/json", json.dumps({"error": error}).encode()


def head(
    reply: LocalReply,
    content_type: bytes,
    size: int,
    *,
    request_id: bytes,
    date: bytes,
    close: bool,
    lines: bytes = b"",
) -> bytes:
    """The response head of a local reply, ready to be written. `lines` are further fields."""
    parts = [status_line(reply.status), b"Date: ", date, b"\r\nX-Request-Id: ", request_id, b"\r\n"]
    if reply.status != 204:
        if size:
            parts += (b"Content-Type: ", content_type, b"\r\n")
        parts.append(b"Content-Length: %d\r\n" % size)
    if reply.retry_after_s:
        parts.append(b"Retry-After: %d\r\n" % reply.retry_after_s)
    for name, value in reply.headers:
        parts.append(b"%b: %b\r\n" % (name, value))
    if close:
        parts.append(b"Connection: close\r\n")
    parts += (lines, b"\r\n")
    return b"".join(parts)


HELLO: Final = LocalReply(200, message="gatewayd")
NO_CHALLENGE: Final = LocalReply(404, "not_found", "No such challenge of ACME is open here")
NOT_FOUND: Final = LocalReply(404, "not_found", "No service answers at this host")
PATH_FORBIDDEN: Final = LocalReply(
    403, "forbidden", "This path is not served here", rejection="path"
)
NO_REPLICA: Final = LocalReply(
    503,
    "no_ready_replica",
    "No replica of this service is ready; try again shortly",
    rejection="no_replica",
    retry_after_s=5,
)


def not_ready(why: str) -> LocalReply:
    """For a service that has replicas, but not what it takes; `why` is for its client."""
    return replace(NO_REPLICA, message=f"{why}; try again shortly")


NO_ROUTER: Final = "The router of this service is not ready"
ROUTER_NOT_READY: Final = not_ready(NO_ROUTER)
BODY_TOO_LARGE: Final = LocalReply(
    413, "body_too_large", "The request body is larger than this service accepts",
    rejection="body_size", close=True,
)  # fmt: skip
UNAUTHENTICATED: Final = LocalReply(
    401,
    "invalid_api_key",
    "A valid bearer token is required",
    headers=((b"WWW-Authenticate", b"Bearer"),),
    rejection="auth",
)
FORBIDDEN: Final = LocalReply(
    403, "forbidden", "This token may not use this service", rejection="auth"
)
AUTH_UNAVAILABLE: Final = LocalReply(
    503,
    "auth_unavailable",
    "The token could not be checked; try again shortly",
    rejection="auth",
    retry_after_s=1,
)
UPSTREAM_ERROR: Final = LocalReply(502, "upstream_error", "The replica did not answer properly")
UPSTREAM_TIMEOUT: Final = LocalReply(504, "upstream_timeout", "The replica did not answer in time")
HEAD_TIMEOUT: Final = LocalReply(
    408, "request_timeout", "The request's head did not arrive in time",
    rejection="header_timeout", close=True,
)  # fmt: skip
BODY_TIMEOUT: Final = LocalReply(
    408, "request_timeout", "The request's body did not arrive in time",
    rejection="body_timeout", close=True,
)  # fmt: skip
HEAD_TOO_LARGE: Final = LocalReply(
    431, "head_too_large", "The request's header fields are larger than accepted",
    rejection="header_size", close=True,
)  # fmt: skip
URI_TOO_LONG: Final = LocalReply(
    414, "uri_too_long", "The request line is longer than accepted",
    rejection="request_line", close=True,
)  # fmt: skip
PLAIN_HTTP: Final = LocalReply(
    400, "bad_request", "This address speaks HTTPS, and the request came as plain HTTP",
    rejection="tls_plain_http", close=True,
)  # fmt: skip
INTERNAL: Final = LocalReply(500, "internal_error", "The gateway failed", close=True)
STOPPING: Final = LocalReply(
    503, "stopping", "The gateway is being stopped; try again shortly",
    retry_after_s=1, close=True,
)  # fmt: skip
STALLED: Final = LocalReply(
    408, "write_timeout", "The client does not take its answers", close=True
)  # fmt: skip


def document(content: object) -> LocalReply:
    return LocalReply(200, document=json.dumps(content).encode())


def bad_request(message: str) -> LocalReply:
    return LocalReply(400, "bad_request", message, rejection="malformed", close=True)


def to_https(method: str, host: str, target: str, port: int) -> LocalReply:
    """The same place, secured. A client that was sent elsewhere with 301 may come as GET, without
    its body; 308 leaves no choice."""
    place = target if target.startswith("/") else "/"  # `*` is no place
    where = host if port == 443 else f"{host}:{port}"
    return LocalReply(
        301 if method in ("GET", "HEAD") else 308,
        "https_required",
        "This service is served by HTTPS",
        headers=((b"Location", f"https://{where}{place}".encode("utf-8", "surrogateescape")),),
    )


def too_many(retry_after_s: int) -> LocalReply:
    return LocalReply(
        429,
        "rate_limit_exceeded",
        f"Too many requests; try again in {retry_after_s} s",
        rejection="rate_limit",
        retry_after_s=retry_after_s,
    )
