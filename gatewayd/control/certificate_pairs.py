"""What a certificate says of itself, and whether it can be served.

Owns: reading PEM. Does not own: files that change (control.certificate_files), TLS (net.tls).
Imported only where there are certificates: `cryptography` takes its time and its memory.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Final

from cryptography import x509
from cryptography.x509.oid import NameOID

from gatewayd.core.certificate import FileCertificate
from gatewayd.core.messages import CertificatePair
from gatewayd.net.tls import BadCertificateError, context_of

_SIZE_MAX: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ReadCertificate:
    names: tuple[str, ...]  # lower case
    issuer: str
    not_before: float  # Unix seconds
    not_after: float
    chain: bytes = field(repr=False)
    key: bytes = field(repr=False)


class CertificateFileError(Exception):
    """A pair of files that cannot be served. `at` is which of the two: `cert` or `key`."""

    def __init__(self, at: str, text: str) -> None:
        super().__init__(text)
        self.at = at


def read_files(files: FileCertificate) -> ReadCertificate:
    """Raises CertificateFileError."""
    chain, key = _read("cert", files.cert), _read("key", files.key)
    if b"PRIVATE KEY-----" not in key:
        raise CertificateFileError("key", f"{files.key} holds no private key in PEM")
    try:
        return read_pair(chain, key)
    except BadCertificateError as error:
        if str(error).startswith("the private key"):
            raise CertificateFileError("key", f"{files.key}: {error}") from None
        raise CertificateFileError("cert", f"{files.cert}: {error}") from None


@functools.lru_cache(maxsize=1024)  # asked when the file is checked, and again when it is served
def read_pair(chain: bytes, key: bytes) -> ReadCertificate:
    """Raises BadCertificateError: what a worker could not use is found here."""
    try:
        leaf = x509.load_pem_x509_certificate(chain)
    except ValueError:
        raise BadCertificateError("holds no certificate in PEM") from None
    context_of(CertificatePair((), chain, key))
    names = _names(leaf)
    if not names:
        raise BadCertificateError("names no host (subjectAltName)")
    return ReadCertificate(
        names=names,
        issuer=_issuer(leaf),
        not_before=leaf.not_valid_before_utc.timestamp(),
        not_after=leaf.not_valid_after_utc.timestamp(),
        chain=chain,
        key=key,
    )


def _names(leaf: x509.Certificate) -> tuple[str, ...]:
    try:
        found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (x509.ExtensionNotFound, ValueError):
        return ()
    names = found.value.get_values_for_type(x509.DNSName)
    return tuple(dict.fromkeys(name.lower().removesuffix(".") for name in names))


def _issuer(leaf: x509.Certificate) -> str:
    parts = [
        str(attribute.value)
        for oid in (NameOID.ORGANIZATION_NAME, NameOID.COMMON_NAME)
        for attribute in leaf.issuer.get_attributes_for_oid(oid)
    ]
    return " ".join(parts) or leaf.issuer.rfc4514_string()


def _read(at: str, path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(_SIZE_MAX + 1)
    except OSError as error:
        raise CertificateFileError(at, f"{path} cannot be read: {error.strerror}") from None
    if len(content) > _SIZE_MAX:
        raise CertificateFileError(at, f"{path} is longer than {_SIZE_MAX // 1024} KiB")
    return content
