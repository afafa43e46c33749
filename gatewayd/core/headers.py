"""Which header fields travel, in both directions: bytes in, bytes out.

Owns: hop-by-hop rules (RFC 9110, 7.6.1), forwarded headers, the scan of a request head,
reading a replica's head. Does not own: parsing requests (aiohttp), policy (proxy.admit).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

RawHeaders = Sequence[tuple[bytes, bytes]]

MAX_DIGITS: Final = 18  # of a length: what every party's 64 bits hold

# What a name means to the scan. Anything not listed travels as it came.
_KEEP, _DROP, _NOTE, _NOTE_DROP = range(4)

_REQUEST_KINDS: Final[dict[bytes, int]] = {
    b"connection": _NOTE_DROP,
    b"keep-alive": _DROP,
    b"proxy-connection": _DROP,
    b"proxy-authorization": _DROP,
    b"te": _DROP,
    b"upgrade": _NOTE_DROP,
    b"transfer-encoding": _NOTE_DROP,
    b"content-length": _NOTE_DROP,
    b"expect": _NOTE_DROP,
    b"host": _NOTE_DROP,
    b"authorization": _NOTE_DROP,
    b"x-request-id": _NOTE_DROP,
    b"x-real-ip": _DROP,
    b"forwarded": _DROP,
    b"x-forwarded-for": _NOTE_DROP,
    b"x-forwarded-proto": _NOTE_DROP,
    b"x-forwarded-host": _DROP,
    b"x-forwarded-port": _DROP,
    b"x-forwarded-server": _DROP,
    b"origin": _NOTE,
    b"accept": _NOTE,
    b"access-control-request-method": _NOTE,
}

_RESPONSE_DROP: Final = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"te",
        b"upgrade",
        b"transfer-encoding",
        b"x-request-id",
        b"x-accel-buffering",
        b"x-accel-redirect",
        b"x-gatewayd-replica",  # what the bridge tells the edge, and never a replica
        b"x-gatewayd-failure",
    )
)
_RESPONSE_NOTE: Final = frozenset((b"content-length", b"content-type", b"date"))

# Raw spelling -> (kind, lower-case name); filled as spellings are met, bounded against inventors.
_Kind = tuple[int, bytes]
_MAX_SPELLINGS: Final = 4096
_request_spellings: dict[bytes, _Kind] = {}
_response_spellings: dict[bytes, _Kind] = {}


def _request_kind(raw: bytes) -> _Kind:
    name = raw.lower()
    # A replica behind CGI-like naming cannot tell `X_Real_IP` from `X-Real-IP`.
    kind = _DROP if b"_" in name else _REQUEST_KINDS.get(name, _KEEP)
    if len(_request_spellings) < _MAX_SPELLINGS:
        _request_spellings[raw] = (kind, name)
    return kind, name


def _response_kind(raw: bytes) -> _Kind:
    name = raw.lower()
    kind = _KEEP
    if name in _RESPONSE_NOTE:
        kind = _NOTE
    elif name == b"connection" or name == b"transfer-encoding":
        kind = _NOTE_DROP
    elif name in _RESPONSE_DROP:
        kind = _DROP
    if len(_response_spellings) < _MAX_SPELLINGS:
        _response_spellings[raw] = (kind, name)
    return kind, name


class BadHead(Exception):  # noqa: N818  (a refusal, not a fault)
    """A request head that is refused; `str()` is shown to the client."""


class RequestHead:
    """What one pass over a request's header fields found.

    `lines` are the fields that travel on, each ended by CRLF; `noted` those the edge acts on.
    """

    __slots__ = ("lines", "noted")

    def __init__(self, lines: list[bytes], noted: dict[bytes, bytes]) -> None:
        self.lines = lines
        self.noted = noted


def scan_request(
    raw_headers: RawHeaders,
    drop: frozenset[bytes] = frozenset(),
) -> RequestHead:
    """Split a request's fields into what travels and what the edge acts on.

    Raises BadHead for fields that may be there once only and are there twice.
    """
    lines: list[bytes] = []
    noted: dict[bytes, bytes] = {}
    spellings = _request_spellings
    for raw, value in raw_headers:
        kind, name = spellings.get(raw) or _request_kind(raw)
        if kind == _KEEP:
            lines.append(b"%b: %b\r\n" % (raw, value))
        elif kind != _DROP:
            if name in noted:
                noted[name] = _merge(name, noted[name], value)
            else:
                noted[name] = value
            if kind == _NOTE:
                lines.append(b"%b: %b\r\n" % (raw, value))
    connection = noted.get(b"connection")
    if connection is not None:
        lines = _without_named(lines, connection)
    if drop:
        lines = [line for line in lines if line[: line.index(b":")].lower() not in drop]
    return RequestHead(lines, noted)


_LISTS: Final = frozenset((b"connection", b"x-forwarded-for", b"accept", b"upgrade"))


def _merge(name: bytes, first: bytes, second: bytes) -> bytes:
    if name in _LISTS:
        return first + b", " + second
    if name in (b"x-request-id", b"x-forwarded-proto", b"origin", b"access-control-request-method"):
        return first
    raise BadHead(f"{name.decode()} may be sent only once")


def tokens(value: bytes) -> list[bytes]:
    """A comma-separated list of tokens, lower-case (RFC 9110, 5.6.1)."""
    return [token for part in value.lower().split(b",") if (token := part.strip())]


# Options of the connection itself, and what framing stands on (RFC 9110, 7.6.1 forbids naming it).
_NEVER_NAMED: Final = frozenset((b"close", b"keep-alive", b"content-length"))


def _without_named(lines: list[bytes], connection: bytes) -> list[bytes]:
    named = set(tokens(connection)) - _NEVER_NAMED
    if not named:
        return lines
    return [line for line in lines if line[: line.index(b":")].lower() not in named]


def drop_prefixed(lines: Iterable[bytes], prefixes: tuple[bytes, ...]) -> list[bytes]:
    """Fields whose lower-case name begins with none of `prefixes`."""
    return [line for line in lines if not line[:64].lower().startswith(prefixes)]


# RFC 9112, 4 and 5, without what it lets a recipient forgive: folded lines, bare CR or LF, space
# before the colon, control characters. A replica that needs forgiving is answered for with 502.
_RESPONSE_HEAD: Final = re.compile(
    rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: ([^\x00-\x08\x0a-\x1f\x7f]*))?\r\n"
    rb"((?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[^\x00-\x08\x0a-\x1f\x7f]*\r\n)*)\r\n"
)


class ResponseHead:
    """A replica's head. `length` is -1 when absent; `lines` are the fields that travel on.

    Answers with the same head share one: whoever changes it makes his own.
    """

    __slots__ = (
        "_fields",
        "chunked",
        "close",
        "content_type",
        "has_date",
        "length",
        "lines",
        "made",
        "reason",
        "status",
    )

    def __init__(self, status: int, reason: bytes, fields: bytes) -> None:
        self.status = status
        self.reason = reason
        self._fields = fields
        self.lines: list[bytes] = []
        self.made = b""  # what a client's head begins with for it, once that is made
        self.length = -1
        self.chunked = False
        self.close = False
        self.content_type = b""
        self.has_date = False

    @property
    def status_line(self) -> bytes:
        return b"HTTP/1.1 %d %b\r\n" % (self.status, self.reason)

    def field(self, name: bytes) -> bytes | None:
        """The first value under a lower-case name, travelling or not."""
        for line in self._fields.splitlines():
            raw, _, value = line.partition(b":")
            if raw.lower() == name:
                return value.strip()
        return None

    def drop(self, names: frozenset[bytes]) -> None:
        """Take out fields by lower-case name."""
        self.lines = [line for line in self.lines if line[: line.index(b":")].lower() not in names]
        self.made = b""


class BadResponse(Exception):  # noqa: N818
    """A replica's head that cannot be trusted (RFC 9112, 6.3)."""


def read_response(head: bytes, strip: frozenset[bytes] = frozenset()) -> ResponseHead:
    """Read a whole head, up to and with its empty line; one pass decides what travels and how
    the body ends. Raises BadResponse."""
    found = _RESPONSE_HEAD.fullmatch(head)
    if found is None:
        raise BadResponse("an ill-formed head")
    minor, status, reason, fields = found.groups()
    read = ResponseHead(int(status), reason or b"", fields)
    connection: bytes | None = None
    coding: bytes | None = None
    spellings = _response_spellings
    for line in fields.splitlines(keepends=True):
        raw, _, value = line.partition(b":")
        kind, name = spellings.get(raw) or _response_kind(raw)
        if kind == _KEEP:
            if not strip or name not in strip:
                read.lines.append(line)
        elif kind == _NOTE:
            if name == b"content-length":
                value = value.strip()
                if read.length >= 0 or not value.isdigit() or len(value) > MAX_DIGITS:
                    raise BadResponse("Content-Length twice or ill-formed")
                read.length = int(value)
            elif name == b"content-type":
                read.content_type = value.strip()
            else:
                read.has_date = True
            read.lines.append(line)
        elif kind == _NOTE_DROP:
            value = value.strip()
            if name == b"connection":
                connection = value if connection is None else connection + b", " + value
            elif coding is not None:
                raise BadResponse("Transfer-Encoding twice")
            else:
                coding = value.lower()
    if coding is not None:
        if read.length >= 0:
            raise BadResponse("both Content-Length and Transfer-Encoding")
        if coding != b"chunked":
            raise BadResponse("a Transfer-Encoding other than chunked")
        read.chunked = True
    read.close = minor == b"0"
    if connection is not None:
        read.close = read.close or b"close" in tokens(connection)
        read.lines = _without_named(read.lines, connection)
    return read
