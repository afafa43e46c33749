"""Certificates for tests: an authority of their own, and pairs that it signs."""

from __future__ import annotations

import datetime
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from gatewayd.core.messages import CertificatePair


@dataclass(frozen=True)
class Authority:
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def pair(self, *names: str, days: float = 30, age_days: float = 1) -> CertificatePair:
        """As control publishes it: what it is served for is what it names."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _builder(names[0], days, age_days)
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(n) for n in names]), False)
            .sign(self.key, hashes.SHA256())
        )
        chain = certificate.public_bytes(serialization.Encoding.PEM) + self.pem
        return CertificatePair(names, chain, private_pem(key))

    def client(self, **options: object) -> ssl.SSLContext:
        """Trusts this authority alone."""
        context = ssl.create_default_context(cadata=self.pem.decode())
        for name, value in options.items():
            setattr(context, name, value)
        return context

    def write(self, folder: Path) -> Path:
        path = folder / "authority.pem"
        path.write_bytes(self.pem)
        return path


def make_authority() -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder("An authority of tests", 365, 1)
    certificate = (
        builder.issuer_name(builder._subject_name)  # type: ignore[arg-type]
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .sign(key, hashes.SHA256())
    )
    return Authority(key, certificate)


def write_pair(pair: CertificatePair, folder: Path, name: str) -> tuple[Path, Path]:
    """(certificate, key), replaced as a renewal does."""
    chain, key = folder / f"{name}.pem", folder / f"{name}.key"
    for path, content in ((chain, pair.chain), (key, pair.key)):
        fresh = path.with_suffix(".new")
        fresh.touch(mode=0o600)
        fresh.write_bytes(content)
        fresh.replace(path)
    return chain, key


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _builder(name: str, days: float, age_days: float) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name[:64])]))
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=age_days))
        .not_valid_after(now + datetime.timedelta(days=days))
    )
