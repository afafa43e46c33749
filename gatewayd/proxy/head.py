"""What the head of a request says, as far as the edge acts on it.

Owns: what is refused there (RFC 9110, 9112), what a trusted proxy is believed. Does not own: how a
field is read (core.headers, core.routing, core.clients), what follows (handler, admit).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gatewayd.core.clients import ClientAddresses
from gatewayd.core.headers import BadHead, scan_request, tokens
from gatewayd.core.routing import host_name, split_target

if TYPE_CHECKING:
    from gatewayd.proxy.exchange import Exchange

_MAX_ID: Final = 128
_PROTO: Final = (b"http", b"https")  # by whether it is secure
_SANE_ID: Final = frozenset(
    b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_.:/+=@"
)


def read_head(exchange: Exchange, addresses: ClientAddresses) -> None:
    """Fill in what the head says. Raises BadHead for what is refused, never repaired. Its id it has
    before, so that a refusal carries it too."""
    message = exchange.message
    exchange.head = head = scan_request(message.raw_headers)
    noted = head.noted
    if message.version.major != 1 or message.version.minor not in (0, 1):
        raise BadHead("Only HTTP/1.0 and HTTP/1.1 are spoken here")
    if message.method == "CONNECT":
        raise BadHead("CONNECT is not served here")
    raw_host = noted.get(b"host", b"")
    connection = exchange.connection
    # A keep-alive connection names the same host again and again.
    if raw_host != connection.raw_host:
        connection.host = host_name(raw_host)
        connection.raw_host = raw_host
        connection.forwarded_lines = _forwarded_lines(
            connection.peer, connection.peer, _PROTO[connection.secure], raw_host
        )
    exchange.host = connection.host
    if not exchange.host and exchange.http11:
        raise BadHead("Host is empty")
    if not exchange.target.startswith("/") or "#" in exchange.target:
        exchange.target = split_target(exchange.target, exchange.host)
    exchange.upstream_target = exchange.target
    _read_framing(exchange, noted)
    exchange.forwarded_lines = connection.forwarded_lines
    exchange.secure = connection.secure
    if addresses.any and addresses.trusts(connection.peer):
        _believe(exchange, addresses, noted, raw_host)


def _believe(
    exchange: Exchange, addresses: ClientAddresses, noted: dict[bytes, bytes], raw_host: bytes
) -> None:
    """Take over what a trusted proxy says of the client and the request's id."""
    forwarded_for = noted.get(b"x-forwarded-for")
    exchange.client, chain = addresses.client(exchange.client, forwarded_for)
    proto = noted.get(b"x-forwarded-proto", b"")
    if proto not in _PROTO:
        proto = _PROTO[exchange.secure]
    exchange.secure = proto == b"https"
    exchange.forwarded_lines = _forwarded_lines(exchange.client, chain, proto, raw_host)
    theirs = noted.get(b"x-request-id")
    if theirs is not None and 0 < len(theirs) <= _MAX_ID and _SANE_ID.issuperset(theirs):
        exchange.request_id = exchange.given_id = theirs


def _read_framing(exchange: Exchange, noted: dict[bytes, bytes]) -> None:
    length = noted.get(b"content-length")
    coding = noted.get(b"transfer-encoding")
    if coding is not None:
        # Other codings than this one would have to be undone, or passed on to be understood.
        if coding.lower() != b"chunked" or not exchange.message.chunked:
            raise BadHead("Only the transfer coding `chunked` is understood")
        if not exchange.http11:
            raise BadHead("HTTP/1.0 knows no transfer coding")
        exchange.length = -1
    elif length is not None:
        exchange.length = int(length)
    expect = noted.get(b"expect")
    if expect is not None:
        exchange.expects_continue = expect.lower() == b"100-continue" and exchange.http11
    upgrade = noted.get(b"upgrade")
    if upgrade is not None and b"upgrade" in tokens(noted.get(b"connection", b"")):
        if b"h2c" in tokens(upgrade):
            raise BadHead("Upgrade to h2c is not served here")
        if exchange.http11:
            exchange.upgrade = upgrade
            exchange.close = True


def _forwarded_lines(client: str, chain: str, proto: bytes, raw_host: bytes) -> bytes:
    return (
        b"X-Real-IP: %b\r\nX-Forwarded-For: %b\r\n"
        b"X-Forwarded-Proto: %b\r\nX-Forwarded-Host: %b\r\n"
        % (client.encode(), chain.encode(), proto, raw_host)
    )
