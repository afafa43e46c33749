"""What is signed for an ACME authority, by the examples of the RFCs."""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import json

import pytest
from certificates import private_pem
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from gatewayd.control.acme_keys import (
    BadBindingKeyError,
    bind,
    certificate_id,
    from_pem,
    jwk,
    key_authorization,
    make_key,
    proof_pair,
    to_pem,
)
from gatewayd.control.acme_wire import AcmeError
from gatewayd.net.tls import context_of


def test_ari_calls_a_certificate_as_in_its_rfc() -> None:
    """RFC 9773, 4.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    now = datetime.datetime.now(datetime.UTC)
    identifier = bytes.fromhex("69885b6b87464041e1b37b847ba0ae2cde01c8d4")
    chain = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(0x87654321)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.AuthorityKeyIdentifier(identifier, None, None), False)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    assert certificate_id(chain) == "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE"


def test_a_binding_is_an_hmac_over_the_accounts_key() -> None:
    key, secret = make_key(), base64.urlsafe_b64encode(b"s" * 32).rstrip(b"=").decode()
    bound = bind(key, "kid-1", secret, "https://ca/new-account")
    data = f"{bound['protected']}.{bound['payload']}".encode()
    signed = base64.urlsafe_b64decode(bound["signature"] + "=")
    assert signed == hmac.digest(b"s" * 32, data, "sha256")
    header, body = (
        json.loads(base64.urlsafe_b64decode(bound[part] + "=" * (-len(bound[part]) % 4)))
        for part in ("protected", "payload")
    )
    assert header == {"alg": "HS256", "kid": "kid-1", "url": "https://ca/new-account"}
    assert body == jwk(key)


@pytest.mark.parametrize("secret", ["", "not base64!", "é"])
def test_what_is_no_binding_key_is_named(secret: str) -> None:
    with pytest.raises(BadBindingKeyError, match="eab_hmac_key"):
        bind(make_key(), "k", secret, "https://ca")


def test_a_key_survives_its_file() -> None:
    key = make_key()
    assert jwk(from_pem(to_pem(key))) == jwk(key)
    other = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    with pytest.raises(ValueError, match="P-256"):
        from_pem(other)
    with pytest.raises(ValueError, match="P-256"):
        from_pem(private_pem(ec.generate_private_key(ec.SECP384R1())))


def test_a_proof_by_tls_holds_the_digest_in_a_critical_extension() -> None:
    """RFC 8737, 3."""
    proof = key_authorization("token", make_key())
    pair = proof_pair("a.example.com", proof)
    context_of(pair)
    leaf = x509.load_pem_x509_certificate(pair.chain)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["a.example.com"]
    found = leaf.extensions.get_extension_for_oid(x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31"))
    assert found.critical
    assert found.value.public_bytes() == b"\x04\x20" + hashlib.sha256(proof.encode()).digest()


def test_a_refusal_carries_what_the_authority_said() -> None:
    assert AcmeError("cannot be asked").kind == ""
    assert AcmeError("cannot be asked").retry_after is None
