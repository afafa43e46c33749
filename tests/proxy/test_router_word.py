"""What the edge makes of an answer that came through a router."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from gatewayd.core.headers import read_response
from gatewayd.core.model import RouterTraits
from gatewayd.net.upstream import UpstreamConnection
from gatewayd.proxy.router_word import HopFailure, Word, hear

TRAITS = RouterTraits(error_header=b"x-code", unsent_errors=frozenset({b"no_workers"}))


def answer(status: int, *fields: bytes) -> UpstreamConnection:
    lines = b"".join(field + b"\r\n" for field in fields)
    head = read_response(b"HTTP/1.1 %d Any\r\n%b\r\n" % (status, lines))
    return cast(UpstreamConnection, SimpleNamespace(head=head, status=status))


@pytest.mark.parametrize(
    ("connection", "word"),
    [
        (answer(200), Word("", None)),
        (answer(200, b"X-Gatewayd-Replica: a"), Word("a", None)),
        (answer(500, b"X-Gatewayd-Replica: a"), Word("a", None)),
        (answer(500, b"X-Code: broke"), Word("", HopFailure("router", False))),
        (answer(503, b"X-Code: no_workers"), Word("", HopFailure("router", True))),
        (answer(404, b"X-Code: no_workers"), Word("", HopFailure("router", True))),
        (answer(400, b"X-Code: bad_json"), Word("", None)),
        (
            answer(502, b"X-Gatewayd-Replica: a", b"X-Gatewayd-Failure: connect"),
            Word("a", HopFailure("connect", True)),
        ),
        (
            answer(502, b"X-Gatewayd-Replica: a", b"X-Gatewayd-Failure: closed"),
            Word("a", HopFailure("closed", False)),
        ),
    ],
)
def test_whose_word_it_is(connection: UpstreamConnection, word: Word) -> None:
    assert hear(connection, TRAITS) == word
