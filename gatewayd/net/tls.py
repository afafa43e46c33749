"""Certificates as TLS contexts: one for each, chosen by the name that a client asks for.

Owns: the profile (versions, ciphers, ALPN), the choice by SNI, the swap. Does not own: bytes of
a connection (net.tls_transport), who waits for a certificate (net.awaited), where they come from
(control), who is told (proxy).

The profile is Mozilla's "intermediate" (https://wiki.mozilla.org/Security/Server_Side_TLS).
"""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from gatewayd.core.messages import CertificatePair
from gatewayd.net.awaited import Awaited, Waiter

ACME_PROTOCOL: Final = "acme-tls/1"  # RFC 8737
_PROTOCOL: Final = "http/1.1"
_ACME_OFFER: Final = b"\x0aacme-tls/1"  # as it stands in a ClientHello (RFC 7301, 3.1)
_CIPHERS: Final = ":".join(  # of TLS 1.2; those of 1.3 are OpenSSL's own, which are Mozilla's
    (
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "ECDHE-RSA-AES128-GCM-SHA256",
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        "ECDHE-RSA-AES256-GCM-SHA384",
        "ECDHE-ECDSA-CHACHA20-POLY1305",
        "ECDHE-RSA-CHACHA20-POLY1305",
    )
)
# What a session ticket is sealed with lives in the context of the listener: whoever learns it can
# read what sessions of TLS 1.2 said, so none lives longer than a day.
_TICKET_KEY_S: Final = 24 * 3600.0


class BadCertificateError(Exception):
    """A pair that cannot be served; the text says why."""


def make_context(protocol: str = _PROTOCOL) -> ssl.SSLContext:
    """A context of the profile, without a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    # Clients without AES in hardware choose ChaCha20: all ciphers of the profile are good.
    context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols([protocol])
    context.num_tickets = 1  # half of what a second one costs, and each use gives the next
    return context


def context_of(pair: CertificatePair, protocol: str = _PROTOCOL) -> ssl.SSLContext:
    """Raises BadCertificateError: not PEM, or the key is another's."""
    context = make_context(protocol)
    # OpenSSL's functions behind `ssl` read files only. This one has no name and no disk.
    fd = os.memfd_create("certificate")
    try:
        with os.fdopen(os.dup(fd), "wb") as file:
            file.write(pair.chain.rstrip() + b"\n" + pair.key)
        context.load_cert_chain(f"/proc/self/fd/{fd}", password=_no_password)
    except ssl.SSLError as error:
        raise BadCertificateError(_why(error)) from None
    except ValueError:
        raise BadCertificateError("the private key is encrypted") from None
    finally:
        os.close(fd)
    return context


def _no_password() -> str:
    raise ValueError  # else OpenSSL asks the terminal


def _why(error: ssl.SSLError) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return "the private key does not belong to the certificate"
    if error.reason in ("EE_KEY_TOO_SMALL", "CA_KEY_TOO_SMALL", "CA_MD_TOO_WEAK"):
        return "its key or its signature is too weak"
    return "certificate or private key is not valid PEM"


class Client(Waiter, Protocol):
    """Whose hello is kept until it has been answered."""

    hello: bytes | None  # what has come of it


class Contexts:
    """Which context serves whom. `replace` swaps all; handshakes that have begun, and connections
    that are open, keep theirs.

    A context takes a millisecond and 20 KiB to make: the first client of a name pays for it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pairs: Mapping[str, CertificatePair] = {}
        self._default: CertificatePair | None = None
        self._made: dict[CertificatePair, ssl.SSLContext] = {}
        self._alpn: Mapping[str, CertificatePair] = {}
        self.awaited = Awaited(clock)
        self._client: Client | None = None  # whose handshake goes on in this call
        self._listener: ssl.SSLContext | None = None
        self._listener_until = 0.0
        self._borne: CertificatePair | None = None  # by the listener

    def __repr__(self) -> str:
        return f"<Contexts {len(self._pairs)} names, {len(self._made)} made>"

    def replace(self, pairs: tuple[CertificatePair, ...], default: str | None) -> None:
        """`default` is one of the pairs' names. Of two pairs with one name the first has it."""
        by_name: dict[str, CertificatePair] = {}
        for pair in pairs:
            for name in pair.names:
                by_name.setdefault(name, pair)
        self._pairs = by_name
        self._default = None if default is None else by_name.get(default)
        kept = {pair: pair for pair in pairs}
        self._made = {pair: made for pair, made in self._made.items() if pair in kept}
        self._borne = None if self._borne is None else kept.get(self._borne)
        if self._borne is None:
            self._listener = None
        self.awaited.serve(self.serves)

    def challenge(self, alpn: Mapping[str, CertificatePair]) -> None:
        """Names whose challenge certificate is shown to whoever offers `acme-tls/1` only."""
        self._alpn = alpn

    @property
    def keeps_hellos(self) -> bool:
        """Whether more than the client's name counts at this moment. It is seldom so."""
        return bool(self._alpn or self.awaited)

    def shake(self, connection: ssl.SSLObject, client: Client) -> None:
        """`do_handshake` of one whose hello is kept. When it fails because the client has to wait
        (`awaited.holds`), what OpenSSL says to that is not for the client."""
        self._client = client
        try:
            connection.do_handshake()
        finally:
            self._client = None

    @property
    def listener(self) -> ssl.SSLContext:
        """What a handshake begins with, until the client's name has chosen a certificate. It bears
        one of them already, since changing to another takes OpenSSL 5 to 9 µs."""
        now = self._clock()
        if self._listener is None or now >= self._listener_until:
            self._listener = self._make_listener()
            self._listener_until = now + _TICKET_KEY_S
            self._listener.sni_callback = self._chosen
        return self._listener

    def _make_listener(self) -> ssl.SSLContext:
        self._borne = self._default or next(iter(self._pairs.values()), None)
        if self._borne is not None:
            try:
                return context_of(self._borne)
            except BadCertificateError:
                self._borne = None  # whoever asks for its names is told
        return make_context()

    def find(self, name: str | None) -> CertificatePair | None:
        """Exact, then the wildcard one label above, then the default."""
        pair = None if name is None else self._own(_plain(name))
        return self._default if pair is None else pair

    def serves(self, name: str) -> bool:
        """By a certificate that is for it."""
        return self._own(name) is not None

    def _own(self, name: str) -> CertificatePair | None:
        return self._pairs.get(name) or self._pairs.get(f"*.{name.partition('.')[2]}")

    def _chosen(
        self, connection: ssl.SSLObject, name: str | None, listener: ssl.SSLContext
    ) -> ssl.AlertDescription | None:
        """OpenSSL asks during the handshake, also a client without a name."""
        try:
            pair, protocol = self.find(name), _PROTOCOL
            if (client := self._client) is not None and name is not None:
                name = _plain(name)
                # `ssl` does not tell what else was offered. An authority that looks for a proof
                # gets it, or an alert, and never has to wait.
                if _ACME_OFFER in (client.hello or b""):
                    pair, protocol = self._alpn.get(name), ACME_PROTOCOL
                elif not self.serves(name) and self.awaited.hold(name, client):
                    pair = None
            if pair is None:
                return ssl.AlertDescription.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
            if pair is self._borne and listener is self._listener:
                return None
            context = self._made.get(pair)
            if context is None:
                context = context_of(pair, protocol)
                if protocol == _PROTOCOL:
                    self._made[pair] = context
            connection.context = context
        except Exception:  # what is raised here would be printed, and the handshake go on
            return ssl.AlertDescription.ALERT_DESCRIPTION_INTERNAL_ERROR
        return None


def _plain(name: str) -> str:
    return name.lower().removesuffix(".")
