"""Which certificate a name gets, and what a pair must be to be served."""

from __future__ import annotations

import contextlib
import ssl

import pytest
from certificates import Authority, make_authority, private_pem
from cryptography.hazmat.primitives.asymmetric import ec

from gatewayd.core.messages import CertificatePair
from gatewayd.core.names import covers, uncovered
from gatewayd.net.tls import BadCertificateError, Contexts, context_of, make_context


def pair(*names: str) -> CertificatePair:
    return CertificatePair(names, b"chain of " + names[0].encode(), b"key")


PAIRS = (pair("a.org", "*.a.org"), pair("b.a.org"), pair("a.org", "c.org"))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a.org", 0),
        ("A.Org", 0),
        ("a.org.", 0),
        ("x.a.org", 0),
        ("b.a.org", 1),
        ("c.org", 2),
        ("x.c.org", None),
        ("x.y.a.org", None),
        ("org", None),
        ("", None),
        (None, None),
    ],
)
def test_the_choice_by_name(name: str | None, found: int | None) -> None:
    contexts = Contexts()
    contexts.replace(PAIRS, None)
    assert contexts.find(name) == (None if found is None else PAIRS[found])
    contexts.replace(PAIRS, "c.org")
    assert contexts.find(name) == PAIRS[2 if found is None else found]


def test_what_names_cover() -> None:
    names = {"a.org", "*.b.org"}
    assert covers(names, "a.org")
    assert covers(names, "x.b.org")
    assert uncovered(names, ["a.org", "b.org", "x.y.b.org", "c.b.org"]) == ["b.org", "x.y.b.org"]


def test_tickets_are_sealed_with_another_key_every_day() -> None:
    now = 0.0
    contexts = Contexts(lambda: now)
    first = contexts.listener
    now = 86_399.0
    assert contexts.listener is first
    now = 86_400.0
    assert contexts.listener is not first


def shaken(contexts: Contexts, authority: Authority, name: str | None) -> set[str]:
    """The names of the certificate that a client of `name` gets. ssl.SSLError."""
    trusting = ssl.create_default_context(cadata=authority.pem.decode())
    trusting.check_hostname = False
    (to_server, to_client) = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(to_client, to_server, server_hostname=name)
    server = contexts.listener.wrap_bio(to_server, to_client, server_side=True)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    with contextlib.suppress(ssl.SSLWantReadError):
        server.do_handshake()
    client.do_handshake()
    server.do_handshake()
    found = client.getpeercert()
    assert found is not None
    return {str(value) for _, value in found["subjectAltName"]}


def test_each_client_gets_the_certificate_of_its_name(authority: Authority) -> None:
    first, second, new = (authority.pair(name) for name in ("a.org", "b.org", "a.org"))
    contexts = Contexts()
    contexts.replace((first, second), None)
    for _ in range(2):
        assert shaken(contexts, authority, "a.org") == {"a.org"}
        assert shaken(contexts, authority, "b.org") == {"b.org"}
        for unknown in ("c.org", None):
            with pytest.raises(ssl.SSLError, match="CALLBACK_FAILED"):
                shaken(contexts, authority, unknown)
        # The same ones again, as they come from control: tickets stay good.
        before = contexts.listener
        contexts.replace(
            tuple(CertificatePair(p.names, p.chain, p.key) for p in (first, second)), None
        )
        assert contexts.listener is before
    contexts.replace((second,), None)
    with pytest.raises(ssl.SSLError, match="CALLBACK_FAILED"):
        shaken(contexts, authority, "a.org")
    contexts.replace((second, new), "a.org")
    assert shaken(contexts, authority, None) == {"a.org"}
    contexts.replace((), None)
    with pytest.raises(ssl.SSLError, match="CALLBACK_FAILED"):
        shaken(contexts, authority, "a.org")


def test_a_pair_that_is_no_certificate_takes_nobody_elses_away(authority: Authority) -> None:
    contexts = Contexts()
    contexts.replace((pair("bad.org"), authority.pair("a.org")), None)
    assert shaken(contexts, authority, "a.org") == {"a.org"}
    with pytest.raises(ssl.SSLError, match="CALLBACK_FAILED"):
        shaken(contexts, authority, "bad.org")


def test_the_profile() -> None:
    context = make_context()
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    ciphers = {cipher["name"] for cipher in context.get_ciphers()}
    assert {name.split("-")[0] for name in ciphers if not name.startswith("TLS_")} == {"ECDHE"}
    assert not any("CBC" in name or name.endswith("SHA") for name in ciphers)
    assert not context.options & ssl.OP_CIPHER_SERVER_PREFERENCE
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.options & ssl.OP_NO_COMPRESSION


@pytest.fixture(scope="module")
def authority() -> Authority:
    return make_authority()


def test_a_pair_whose_key_is_anothers(authority: Authority) -> None:
    good = authority.pair("a.org")
    assert isinstance(context_of(good), ssl.SSLContext)
    other = private_pem(ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(BadCertificateError, match="does not belong to the certificate"):
        context_of(CertificatePair(good.names, good.chain, other))
    with pytest.raises(BadCertificateError, match="not valid PEM"):
        context_of(CertificatePair(good.names, b"chain", good.key))
