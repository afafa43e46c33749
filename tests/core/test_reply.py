from __future__ import annotations

import json

import pytest

from gatewayd.core import reply as replies
from gatewayd.core.reply import LocalReply

DATE = b"Tue, 15 Nov 1994 08:12:31 GMT"
OURS = {name: value for name, value in vars(replies).items() if isinstance(value, LocalReply)}


def head(reply: LocalReply, size: int = 3, *, close: bool = False, lines: bytes = b"") -> list[str]:
    data = replies.head(
        reply, b"text/plain", size, request_id=b"id", date=DATE, close=close, lines=lines
    )
    assert data.endswith(b"\r\n\r\n")
    assert data.count(b"\r\n\r\n") == 1
    return data.decode().split("\r\n")[:-2]


def test_a_head_says_when_whose_and_how_long() -> None:
    assert head(LocalReply(404, "not_found", "x")) == [
        "HTTP/1.1 404 Not Found",
        f"Date: {DATE.decode()}",
        "X-Request-Id: id",
        "Content-Type: text/plain",
        "Content-Length: 3",
    ]


def test_what_a_reply_asks_for_is_in_its_head() -> None:
    lines = head(replies.too_many(7), close=True, lines=b"Vary: Origin\r\n")
    assert "Retry-After: 7" in lines
    assert "Connection: close" in lines
    assert "Vary: Origin" in lines
    assert "WWW-Authenticate: Bearer" in head(replies.UNAUTHENTICATED)


def test_204_has_neither_type_nor_length() -> None:
    names = {line.partition(":")[0] for line in head(LocalReply(204), 0)[1:]}
    assert names == {"Date", "X-Request-Id"}


def test_an_unknown_status_has_a_line_too() -> None:
    assert replies.status_line(299) == b"HTTP/1.1 299 Unknown\r\n"
    assert replies.status_line(431) == b"HTTP/1.1 431 Request Header Fields Too Large\r\n"


@pytest.mark.parametrize("name", sorted(OURS))
def test_each_reply_is_one_line_or_openais_shape(name: str) -> None:
    reply = OURS[name]
    content_type, text = replies.body(reply, as_json=False)
    assert content_type.startswith(b"text/plain")
    assert text.count(b"\n") == 1
    if reply.code:
        assert reply.code in text.decode()
        content_type, body = replies.body(reply, as_json=True)
        assert content_type == b"application/json"
        error = json.loads(body)["error"]
        assert (error["message"], error["code"], error["param"]) == (
            reply.message,
            reply.code,
            None,
        )


@pytest.mark.parametrize(
    ("reply", "status", "code", "kind"),
    [
        (replies.UNAUTHENTICATED, 401, "invalid_api_key", "authentication_error"),
        (replies.FORBIDDEN, 403, "forbidden", "permission_error"),
        (replies.PATH_FORBIDDEN, 403, "forbidden", "permission_error"),
        (replies.NOT_FOUND, 404, "not_found", "not_found_error"),
        (replies.BODY_TOO_LARGE, 413, "body_too_large", "invalid_request_error"),
        (replies.too_many(1), 429, "rate_limit_exceeded", "rate_limit_error"),
        (replies.NO_REPLICA, 503, "no_ready_replica", "server_error"),
        (replies.UPSTREAM_ERROR, 502, "upstream_error", "server_error"),
        (replies.UPSTREAM_TIMEOUT, 504, "upstream_timeout", "server_error"),
        (replies.bad_request("x"), 400, "bad_request", "invalid_request_error"),
    ],
)
def test_codes_and_types(reply: LocalReply, status: int, code: str, kind: str) -> None:
    error = json.loads(replies.body(reply, as_json=True)[1])["error"]
    assert (reply.status, error["code"], error["type"]) == (status, code, kind)


@pytest.mark.parametrize("name", sorted(n for n, r in OURS.items() if r.status in (429, 503)))
def test_who_may_come_back_is_told_when(name: str) -> None:
    assert OURS[name].retry_after_s >= 1


@pytest.mark.parametrize("name", sorted(n for n, r in OURS.items() if r.status in (400, 408, 413)))
def test_what_cannot_be_read_on_closes(name: str) -> None:
    assert OURS[name].close


def test_a_message_cannot_break_out_of_its_shape() -> None:
    reply = replies.bad_request('quote " and \\ and \u2028')
    assert json.loads(replies.body(reply, as_json=True)[1])["error"]["message"] == reply.message
