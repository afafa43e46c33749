from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatewayd.core import headers
from gatewayd.core.headers import (
    BadHead,
    BadResponse,
    ResponseHead,
    drop_prefixed,
    read_response,
    scan_request,
    tokens,
)

OK = b"HTTP/1.1 200 OK\r\n"


def read(*lines: bytes, start: bytes = OK) -> ResponseHead:
    return read_response(start + b"".join(line + b"\r\n" for line in lines) + b"\r\n")


# --- requests


def test_what_travels_keeps_its_spelling_and_order() -> None:
    head = scan_request([(b"X-B", b"1"), (b"x-a", b"2"), (b"X-B", b"3"), (b"Accept", b"*/*")])
    assert head.lines == [b"X-B: 1\r\n", b"x-a: 2\r\n", b"X-B: 3\r\n", b"Accept: */*\r\n"]
    assert head.noted == {b"accept": b"*/*"}


@pytest.mark.parametrize(
    "name",
    [b"TE", b"keep-alive", b"Proxy-Authorization", b"Forwarded", b"X-Real-IP", b"X-Forwarded-Port",
     b"X_Real_Ip", b"Content_Length", b"_", b"X-Forwarded-Host"],
)  # fmt: skip
def test_what_is_dropped_is_not_even_noted(name: bytes) -> None:
    head = scan_request([(name, b"v")])
    assert (head.lines, head.noted) == ([], {})


@pytest.mark.parametrize(
    "name",
    [b"Host", b"Authorization", b"Content-Length", b"Transfer-Encoding", b"Expect", b"Upgrade",
     b"X-Request-Id", b"X-Forwarded-For", b"X-Forwarded-Proto", b"Connection"],
)  # fmt: skip
def test_what_the_edge_acts_on_is_noted_and_rewritten(name: bytes) -> None:
    head = scan_request([(name.upper(), b"v")])
    assert (head.lines, head.noted) == ([], {name.lower(): b"v"})


@pytest.mark.parametrize(
    "name", [b"Host", b"Content-Length", b"Transfer-Encoding", b"Authorization", b"Expect"]
)
def test_what_may_be_there_once_is_refused_twice(name: bytes) -> None:
    with pytest.raises(BadHead, match="only once"):
        scan_request([(name, b"a"), (name.lower(), b"a")])


def test_lists_are_joined_and_the_first_of_others_counts() -> None:
    head = scan_request(
        [
            (b"X-Forwarded-For", b"1.1.1.1"),
            (b"x-forwarded-for", b"2.2.2.2"),
            (b"X-Request-Id", b"a"),
            (b"X-Request-Id", b"b"),
            (b"Connection", b"x-a"),
            (b"Connection", b"x-b"),
            (b"X-A", b"1"),
            (b"X-B", b"1"),
        ]
    )
    assert head.noted[b"x-forwarded-for"] == b"1.1.1.1, 2.2.2.2"
    assert head.noted[b"x-request-id"] == b"a"
    assert head.lines == []


def test_named_in_connection_means_the_whole_name() -> None:
    head = scan_request([(b"Connection", b"x-a,, X-C ,"), (b"X-A", b""), (b"X-Ab", b""),
                         (b"x-c", b""), (b"Accept", b"a")])  # fmt: skip
    assert head.lines == [b"X-Ab: \r\n", b"Accept: a\r\n"]


def test_further_names_can_be_dropped_per_hop() -> None:
    head = scan_request([(b"X-Ask", b"1"), (b"X-Asked", b"1")], frozenset({b"x-ask"}))
    assert head.lines == [b"X-Asked: 1\r\n"]
    lines = [b"X-R-A: 1\r\n", b"x-r-b: 2\r\n", b"X-Other: 3\r\n"]
    assert drop_prefixed(lines, (b"x-r-",)) == [b"X-Other: 3\r\n"]


@pytest.mark.parametrize(
    ("value", "found"),
    [(b"", []), (b",", []), (b"close", [b"close"]), (b" A ,b, C", [b"a", b"b", b"c"])],
)
def test_tokens_are_lower_case_and_trimmed(value: bytes, found: list[bytes]) -> None:
    assert tokens(value) == found


def test_inventors_of_names_cannot_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "_request_spellings", {})
    monkeypatch.setattr(headers, "_response_spellings", {})
    for number in range(headers._MAX_SPELLINGS + 100):
        name = b"X-%d" % number
        assert scan_request([(name, b"")]).lines
        assert read(name + b": a").lines
    assert len(headers._request_spellings) == headers._MAX_SPELLINGS
    assert len(headers._response_spellings) == headers._MAX_SPELLINGS
    assert scan_request([(b"Host", b"late")]).noted == {b"host": b"late"}


# --- responses


def test_a_head_is_split_into_what_travels_and_what_decides() -> None:
    head = read(
        b"Content-Type:text/plain",
        b"Content-Length:  5 ",
        b"Date: today",
        b"Connection: keep-alive",
        b"Keep-Alive: 5",
        b"X-A: \xff b",
    )
    assert (head.status, head.reason) == (200, b"OK")
    assert (head.length, head.chunked, head.close, head.has_date) == (5, False, False, True)
    assert head.content_type == b"text/plain"
    names = [line.partition(b":")[0] for line in head.lines]
    assert names == [b"Content-Type", b"Content-Length", b"Date", b"X-A"]
    assert head.field(b"keep-alive") == b"5"
    assert head.field(b"x-none") is None


@pytest.mark.parametrize(
    ("lines", "close"),
    [
        ([], False),
        ([b"Connection: close"], True),
        ([b"Connection: x, CLOSE"], True),
        ([b"Connection: x", b"Connection: close"], True),
        ([b"Connection: closed"], False),
    ],
)
def test_close_is_read_as_a_token(lines: list[bytes], close: bool) -> None:
    assert read(*lines).close is close
    assert read(*lines, start=b"HTTP/1.0 200 OK\r\n").close


@pytest.mark.parametrize(
    "start",
    [b"HTTP/1.1 200\r\n", b"HTTP/1.1 200 \r\n", b"HTTP/1.1 200 O K\r\n", b"HTTP/1.1 999 \xe4\r\n"],
)
def test_reasons_are_free(start: bytes) -> None:
    assert read(start=start).status in (200, 999)


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.2 200 OK\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"http/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 099 OK\r\n\r\n",
        b"HTTP/1.1  200 OK\r\n\r\n",
        b" HTTP/1.1 200 OK\r\n\r\n",
        b"\r\nHTTP/1.1 200 OK\r\n\r\n",
        OK + b"A : b\r\n\r\n",
        OK + b" A: b\r\n\r\n",
        OK + b"A: b\r\n c\r\n\r\n",
        OK + b": b\r\n\r\n",
        OK + b"A\r\n\r\n",
        OK + b"A: b\rc\r\n\r\n",
        OK + b"A: b\nc: d\r\n\r\n",
        OK + b"A: \x00\r\n\r\n",
        OK + b"A: \x7f\r\n\r\n",
        OK + b"A(): b\r\n\r\n",
        OK + b"\xe4: b\r\n\r\n",
        OK + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\n",
        OK + b"Content-Length: 5, 5\r\n\r\n",
        OK + b"Content-Length: -5\r\n\r\n",
        OK + b"Content-Length: +5\r\n\r\n",
        OK + b"Content-Length: 5.0\r\n\r\n",
        OK + b"Content-Length: 0x5\r\n\r\n",
        OK + b"Content-Length:\r\n\r\n",
        OK + b"Content-Length: 1234567890123456789\r\n\r\n",
        OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
        OK + b"Transfer-Encoding: identity\r\n\r\n",
        OK + b"Transfer-Encoding:\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
def test_a_head_that_needs_forgiving_is_bad(head: bytes) -> None:
    with pytest.raises(BadResponse):
        read_response(head)


def test_chunked_is_read_in_any_case_and_travels_not() -> None:
    head = read(b"Transfer-Encoding: Chunked", b"Trailer: X")
    assert head.chunked
    assert head.lines == [b"Trailer: X\r\n"]


def test_names_in_connection_do_not_travel_but_for_the_length() -> None:
    head = read(b"Connection: X-A, Content-Length", b"X-A: 1", b"Content-Length: 3", b"X-B: 2")
    assert head.lines == [b"Content-Length: 3\r\n", b"X-B: 2\r\n"]


def test_further_fields_can_be_stripped_or_dropped() -> None:
    data = OK + b"Server: a\r\nVary: b\r\nX-C: c\r\n\r\n"
    head = read_response(data, frozenset({b"server"}))
    assert head.lines == [b"Vary: b\r\n", b"X-C: c\r\n"]
    assert head.field(b"server") == b"a"
    head.drop(frozenset({b"vary"}))
    assert head.lines == [b"X-C: c\r\n"]


NAME = st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,12}", fullmatch=True).map(str.encode)
VALUE = st.from_regex(r"[!-~]([ -~]{0,20}[!-~])?", fullmatch=True).map(str.encode)


@given(st.lists(st.tuples(NAME, VALUE), max_size=12))
def test_any_well_formed_fields_are_read_and_none_is_invented(
    fields: list[tuple[bytes, bytes]],
) -> None:
    special = {b"connection", b"content-length", b"transfer-encoding"}
    fields = [f for f in fields if f[0].lower() not in special]
    head = read(*[b"%b: %b" % field for field in fields])
    sent = {b"%b: %b\r\n" % field for field in fields}
    assert sent.issuperset(head.lines)
    dropped = {line.partition(b":")[0].lower() for line in sent.difference(head.lines)}
    assert dropped <= headers._RESPONSE_DROP


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for head in (data, OK + data + b"\r\n\r\n"):
        try:
            read = read_response(head)
        except BadResponse:
            continue
        assert all(line.endswith(b"\r\n") and line.count(b"\n") == 1 for line in read.lines)
