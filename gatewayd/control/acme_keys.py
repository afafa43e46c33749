"""Keys and what is signed with them for ACME: JWS, account bindings, requests, proofs.

Owns: the cryptography of RFC 8555 and RFC 8737, over `cryptography`. Does not own: any traffic.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

from gatewayd.core.messages import CertificatePair

Key = ec.EllipticCurvePrivateKey

_COORDINATE: Final = 32  # bytes, of P-256
_PROOF: Final = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")  # id-pe-acmeIdentifier


class BadBindingKeyError(ValueError):
    """The key of an external account binding is not what authorities hand out."""


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def make_key() -> Key:
    return ec.generate_private_key(ec.SECP256R1())


def to_pem(key: Key) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def from_pem(pem: bytes) -> Key:
    """Raises ValueError."""
    key = serialization.load_pem_private_key(pem, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("not an ECDSA P-256 key")
    return key


def jwk(key: Key) -> dict[str, str]:
    """Its public half (RFC 7518, 6.2)."""
    numbers = key.public_key().public_numbers()
    x, y = (b64(n.to_bytes(_COORDINATE, "big")) for n in (numbers.x, numbers.y))
    return {"crv": "P-256", "kty": "EC", "x": x, "y": y}


def key_authorization(token: str, key: Key) -> str:
    """RFC 8555, 8.1; the thumbprint is that of RFC 7638."""
    canonical = json.dumps(jwk(key), sort_keys=True, separators=(",", ":")).encode()
    return f"{token}.{b64(hashlib.sha256(canonical).digest())}"


def dns_value(authorization: str) -> str:
    """What the TXT record of dns-01 holds (RFC 8555, 8.4)."""
    return b64(hashlib.sha256(authorization.encode()).digest())


def sign(key: Key, header: Mapping[str, Any], payload: bytes) -> bytes:
    """A flattened JWS by ES256."""

    def signature(data: bytes) -> bytes:
        r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(_COORDINATE, "big") + s.to_bytes(_COORDINATE, "big")

    protected, body = _parts({"alg": "ES256", **header}, payload)
    signed = signature(f"{protected}.{body}".encode())
    return json.dumps({"protected": protected, "payload": body, "signature": b64(signed)}).encode()


def bind(key: Key, kid: str, hmac_key: str, url: str) -> dict[str, str]:
    """`externalAccountBinding` (RFC 8555, 7.3.4). Raises BadBindingKeyError."""
    try:
        raw = base64.b64decode(hmac_key + "=" * (-len(hmac_key) % 4), b"-_", validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if not raw:
        raise BadBindingKeyError("`eab_hmac_key` is not base64url, as authorities hand it out")
    header = {"alg": "HS256", "kid": kid, "url": url}
    protected, body = _parts(header, json.dumps(jwk(key)).encode())
    signed = hmac.digest(raw, f"{protected}.{body}".encode(), "sha256")
    return {"protected": protected, "payload": body, "signature": b64(signed)}


def _parts(header: Mapping[str, Any], payload: bytes) -> tuple[str, str]:
    return b64(json.dumps(header).encode()), b64(payload)


def request_for(name: str, key: Key) -> str:
    """A certificate signing request, as `finalize` takes it."""
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))  # the name is in subjectAltName; a CN holds 64 characters
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return b64(request.public_bytes(serialization.Encoding.DER))


def proof_pair(name: str, authorization: str) -> CertificatePair:
    """The certificate that an authority finds by `acme-tls/1` (RFC 8737, 3)."""
    key = make_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "acme challenge")])
    now = datetime.now(UTC)
    digest = hashlib.sha256(authorization.encode()).digest()
    proof = x509.UnrecognizedExtension(_PROOF, b"\x04\x20" + digest)  # an OCTET STRING of DER
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=7))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(proof, critical=True)
        .sign(key, hashes.SHA256())
    )
    chain = certificate.public_bytes(serialization.Encoding.PEM)
    return CertificatePair((name,), chain, to_pem(key))


def certificate_id(chain: bytes) -> str | None:
    """How ARI calls a certificate (RFC 9773, 4.1); None for one that it has no name for."""
    leaf = x509.load_pem_x509_certificate(chain)
    try:
        found = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    except (x509.ExtensionNotFound, ValueError):
        return None
    identifier = found.value.key_identifier
    if identifier is None:
        return None
    serial = leaf.serial_number
    return f"{b64(identifier)}.{b64(serial.to_bytes(serial.bit_length() // 8 + 1, 'big'))}"


def leaf_der(chain: bytes) -> str:
    """As `revokeCert` takes it."""
    leaf = x509.load_pem_x509_certificate(chain)
    return b64(leaf.public_bytes(serialization.Encoding.DER))
