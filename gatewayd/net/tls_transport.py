"""TLS between a connection's bytes and whoever speaks HTTP on it.

Owns: one connection's handshake, records both ways, how each kind of end looks to the client.
Does not own: certificates and their choice (net.tls), bounds in time (proxy.connection).

asyncio and uvloop have this too. Theirs keeps buffers of 64 KiB for every connection, which is
what an idle stream then costs; tells of a failed handshake only by a line of the log; and can
neither answer who speaks plain HTTP here nor close half a connection, which a refusal needs (the
answer must not be lost because the client is still sending). See docs/adr/0011.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, Final, Literal, Protocol, cast

from gatewayd.net.lane import Way
from gatewayd.net.tls import ACME_PROTOCOL, Contexts

_HANDSHAKE_RECORD: Final = 0x16  # RFC 8446, 5.1: how every connection begins
_READ_SIZE: Final = 16 * 1024  # what a record holds at most
_HELLO_MAX: Final = 16 * 1024  # of what is kept; the longest of today's clients send 2 KiB
_OLD: Final = frozenset({"UNSUPPORTED_PROTOCOL", "UNKNOWN_PROTOCOL", "WRONG_VERSION_NUMBER"})


# Why a handshake did not come to its end, as metrics name it (with `tls_` before).
HandshakeFailure = Literal[
    "unknown_name",
    "refused",
    "version",
    "no_common_cipher",
    "broken",
    "plain_http",
    "gone",
    "timeout",
]


class Secured(Protocol):
    """What speaks on top: an asyncio.Protocol that also hears how the handshake went. Between
    `connection_made` and `secured` it gets no data, and what it writes is dropped."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None: ...

    def secured(self) -> None: ...

    def insecure(self, failure: HandshakeFailure) -> bytes:
        """The handshake failed. The connection closes behind the bytes, which a client gets that
        speaks in the clear."""

    def data_received(self, data: bytes) -> None: ...

    def eof_received(self) -> bool | None: ...

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...

    def connection_lost(self, exc: Exception | None) -> None: ...


class TlsTransport(asyncio.Protocol):
    """The protocol of the connection below, and the transport of the one above."""

    __slots__ = (
        "_contexts",
        "_half",
        "_incoming",
        "_mixed",
        "_open",
        "_outgoing",
        "_raw",
        "_seal",
        "_sealed",
        "_send",
        "_tls",
        "_upper",
        "hello",
    )

    def __init__(self, contexts: Contexts, upper: Secured) -> None:
        self._contexts = contexts
        self._upper = upper
        self._raw: asyncio.Transport = None  # type: ignore[assignment]  # comes first of all
        self._tls: ssl.SSLObject | None = None
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._open = False  # from the end of the handshake to the first of its ends
        self._half = False  # our side has ended
        self._mixed = False  # the raw transport was written to since it was last seen empty
        # What a client has said so far, while it may have to wait or be an authority that looks
        # for a proof; None: not kept, or answered.
        self.hello: bytes | None = None

    def __repr__(self) -> str:
        return f"<TlsTransport {'open' if self._open else 'not open'}>"

    # --- from the connection below

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._raw = cast(asyncio.Transport, transport)
        self._upper.connection_made(cast(asyncio.BaseTransport, self))

    def data_received(self, data: bytes) -> None:
        if self._open:
            self._incoming.write(data)
            self._read()
        elif self._half:
            self._upper.data_received(data)  # it drops what comes, and only counts it
        elif not self._raw.is_closing():
            self._shake(data)

    def eof_received(self) -> bool | None:
        return self._upper.eof_received()

    def pause_writing(self) -> None:
        self._upper.pause_writing()

    def resume_writing(self) -> None:
        self._upper.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._open = False
        self._tls = None
        if self.hello is not None:
            self.hello = None
            self._contexts.awaited.leave(self, "gone")
        self._upper.connection_lost(exc)

    # --- the handshake

    def _shake(self, data: bytes) -> None:
        if self._tls is None and self.hello is None:
            if data[0] != _HANDSHAKE_RECORD:
                self._raw.write(self._upper.insecure("plain_http"))
                self._raw.close()
                return
            if self._contexts.keeps_hellos:
                self.hello = b""
            self._begin()
        if self.hello is not None:
            self.hello += data
            if len(self.hello) > _HELLO_MAX:
                self._begin_again()
                return
            if self._tls is None:
                return  # it waits
        self._incoming.write(data)
        self._go_on()

    def _begin(self) -> None:
        context = self._contexts.listener
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    @property
    def held(self) -> bool:
        """It waits for a certificate."""
        return self._contexts.awaited.holds(self)

    def go_on(self) -> None:
        """With whatever certificate there is: nobody waits twice."""
        self._contexts.awaited.leave(self, "refused")
        if not self._raw.is_closing():
            self._begin_again()

    def _begin_again(self) -> None:
        """With all that was said so far, and for the last time."""
        hello, self.hello = self.hello, None
        assert hello is not None
        self._contexts.awaited.leave(self, "refused")
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._begin()
        self._incoming.write(hello)
        self._go_on()

    def _go_on(self) -> None:
        tls = self._tls
        assert tls is not None
        try:
            if self.hello is None:
                tls.do_handshake()
            else:
                self._contexts.shake(tls, self)
        except ssl.SSLWantReadError:
            if self._outgoing.pending:
                self.hello = None  # answered
            self._flush()
            return
        except (ssl.SSLError, OSError) as error:
            if self.hello is not None and self.held:
                self._tls = None  # with the alert: it is begun again, as if nothing had been
                return
            self.hello = None
            self._flush()  # the alert that says why
            self._upper.insecure(_failure(error))
            self._raw.close()
            return
        self.hello = None
        self._flush()
        if tls.selected_alpn_protocol() == ACME_PROTOCOL:
            self.close()  # the handshake was all that was wanted (RFC 8737, 3)
            return
        # An event of a stream is these three calls: bound once, and without what `ssl` puts around
        # OpenSSL's, a frame of Python, where there is just that.
        self._seal = getattr(tls, "_sslobj", tls).write
        self._sealed, self._send = self._outgoing.read, self._raw.write
        self._open = True
        self._upper.secured()
        if self._open and (self._incoming.pending or tls.pending()):
            self._read()

    # --- records

    def _read(self) -> None:
        """Everything that has come goes up in one call, as without TLS."""
        tls = self._tls
        assert tls is not None
        incoming = self._incoming
        parts: list[bytes] = []
        ended = False
        try:
            while True:
                part = tls.read(_READ_SIZE)
                if not part:
                    ended = True
                    break
                parts.append(part)
                # Asking once more for what is not there would be answered by an exception.
                if not incoming.pending and not tls.pending():
                    break
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            self.abort()
            return
        if self._outgoing.pending:
            self._flush()
        if parts:
            self._upper.data_received(parts[0] if len(parts) == 1 else b"".join(parts))
        if ended and self._open and not self._upper.eof_received():
            self.close()

    def write(self, data: bytes) -> None:
        if not self._open or not data:
            return
        try:
            size = self._seal(data)
            if size < len(data):
                self._write_rest(memoryview(data), size)
        except ssl.SSLError:
            self.abort()
            return
        self._mixed = True
        self._send(self._sealed())

    def seal(self, data: bytes) -> bytes:
        """The records of it for whoever writes to the socket itself, b"" where they have to go
        the usual way, because something of ours is still to be sent."""
        if self._mixed:
            self._mixed = self._raw.get_write_buffer_size() > 0
        if self._mixed or not self._open or len(data) > _READ_SIZE:
            self.write(data)
            return b""
        try:
            self._seal(data)
        except ssl.SSLError:
            self.abort()
            return b""
        return self._sealed()

    def straight(self) -> Way:
        fd: int = self._raw.get_extra_info("socket").fileno()
        return fd, self._raw.write, self.seal

    def _write_rest(self, data: memoryview, size: int) -> None:
        """A call seals one record. Each leaves at once, so that the buffer between, which never
        shrinks, holds one; uvloop makes one system call of them."""
        while size < len(data):
            self._send(self._sealed())
            size += self._seal(data[size:])

    def _flush(self) -> None:
        data = self._outgoing.read()
        if data and not self._raw.is_closing():
            self._mixed = True
            self._raw.write(data)

    # --- ends

    def close(self) -> None:
        """After what has been written, and said so: the client can tell it from a cut."""
        self._notify()
        self._raw.close()

    def abort(self) -> None:
        """Without a word: what has come so far is not the whole."""
        self._open = False
        self._raw.abort()

    def can_write_eof(self) -> bool:
        return self._raw.can_write_eof()

    def write_eof(self) -> None:
        self._notify()
        self._half = True
        self._raw.write_eof()

    def _notify(self) -> None:
        if not self._open or self._tls is None:
            return
        self._open = False
        try:
            self._tls.unwrap()
        except ssl.SSLError:
            pass  # the other side has not said the same yet, and need not
        self._flush()

    # --- the rest of a transport

    def is_closing(self) -> bool:
        return self._raw.is_closing()

    def pause_reading(self) -> None:
        self._raw.pause_reading()

    def resume_reading(self) -> None:
        self._raw.resume_reading()

    def get_write_buffer_size(self) -> int:
        return self._raw.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "ssl_object":
            return self._tls
        return self._raw.get_extra_info(name, default)


def _failure(error: Exception) -> HandshakeFailure:
    reason = str(getattr(error, "reason", None) or "")
    if reason == "CALLBACK_FAILED":
        return "unknown_name"
    if "ALERT" in reason:
        return "refused"  # by the client: as a rule it does not trust the certificate
    if reason == "HTTP_REQUEST":
        return "plain_http"
    if reason in _OLD:
        return "version"
    return "no_common_cipher" if reason == "NO_SHARED_CIPHER" else "broken"
