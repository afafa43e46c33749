"""Who is served by HTTPS, as the file says it."""

from __future__ import annotations

from pathlib import Path

import pytest
from gateway_text import Load, Problems

from gatewayd.config.rules import CertificateFacts
from gatewayd.control.certificate_check import check_certificate
from gatewayd.core.acme import LETS_ENCRYPT
from gatewayd.core.certificate import (
    AcmeCertificate,
    CertificateSource,
    FileCertificate,
    LiveFolder,
)
from gatewayd.core.model import Hsts
from gatewayd.core.secret import Secret

GATEWAY = "domain: example.com\ncertificate: {type: file, cert: /c, key: /k}\n"
WILD = CertificateFacts(frozenset({"*.example.com"}))


def wildcard(source: CertificateSource) -> CertificateFacts:
    return WILD


def https(load: Load, text: str) -> list[bool]:
    config = load(text, check_certificate=wildcard)
    return [service.https for service in config.services]


def test_a_certificate_opens_a_listener(load: Load) -> None:
    assert [str(a) for a in load(GATEWAY).listen.https] == ["0.0.0.0:8443"]
    assert load(GATEWAY + "listen: {https: []}\n").listen.https == ()
    assert load("domain: example.com\n").listen.https == ()


@pytest.mark.parametrize(
    ("service", "served"),
    [
        ("{name: a}", True),
        ("{name: a, https: auto}", True),
        ("{name: a, https: false}", False),
        ("{name: a, https: true}", True),
        ("{name: a, domain: other.org}", False),
        ("{name: a, domain: [a.example.com, other.org]}", False),
        ("{name: a, domain: a.b.example.com}", False),
        (
            "{name: a, domain: x.example.com, certificate: {type: file, cert: /d, key: /e}}",
            True,
        ),
    ],
)
def test_auto_is_where_a_certificate_covers_all_domains(
    load: Load, service: str, served: bool
) -> None:
    assert https(load, f"{GATEWAY}services: [{service}]\n") == [served]


def test_auto_without_a_listener_is_plain(load: Load) -> None:
    assert https(load, GATEWAY + "listen: {https: []}\nservices: [{name: a}]\n") == [False]


def test_a_model_endpoint_follows_its_domain(load: Load) -> None:
    text = GATEWAY + "model_endpoint: {domain: gateway.example.com}\n"
    endpoint = load(text, check_certificate=wildcard).model_endpoint
    assert endpoint is not None
    assert endpoint.https


def test_sources_are_read(load: Load) -> None:
    config = load(
        "domain: d\ncertificate: {type: letsencrypt-live}\n"
        "services: [{name: a, certificate: {type: file, cert: /c, key: /k, default: true}, "
        "hsts: 1h}]\n"
    )
    assert config.certificate == LiveFolder("/etc/letsencrypt/live")
    (service,) = config.services
    assert service.certificate == FileCertificate("/c", "/k", default=True)
    assert service.hsts == Hsts(3600)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "domain: d\nlisten: {https: 0.0.0.0:8443}\n",
            "2: listen.https: no certificate to serve here; add `certificate` at the top",
        ),
        (
            "domain: d\nservices:\n  - name: a\n    https: true\n",
            "4: services[0].https: HTTPS is served nowhere; set `listen.https` and `certificate`",
        ),
        (
            GATEWAY + "services:\n  - name: a\n    domain: b.org\n    https: true\n",
            "6: services[0].https: no certificate is for `b.org`",
        ),
        (
            GATEWAY
            + "services:\n  - name: a\n    domain: b.org\n"
            + "    certificate: {type: file, cert: /d, key: /e}\n",
            "6: services[0].certificate.cert: is for `*.example.com`, and not for `b.org`, "
            "found `/d`",
        ),
        (
            "domain: d\ncertificate: {type: file, cert: /c, key: /k, default: true}\nservices:\n"
            "  - {name: a, certificate: {type: file, cert: /c, key: /k, default: true}}\n",
            "4: services[0].certificate.default: the default is certificate already",
        ),
        (
            GATEWAY + "listen: {http: 127.0.0.1:9443, https: 127.0.0.1:9443}\n",
            "3: listen.https: 127.0.0.1:9443 collides with 127.0.0.1:9443 of listen.http",
        ),
    ],
)
def test_rules(problems: Problems, text: str, line: str) -> None:
    found = problems(text, check_certificate=wildcard)
    assert line.partition(", found")[0] in [each.partition(", found")[0] for each in found]


def test_what_is_wrong_with_a_certificate_is_told_where_it_stands(problems: Problems) -> None:
    facts = CertificateFacts(frozenset(), (("key", "/k is another's"),))
    text = GATEWAY + "services: [{name: a, https: true}]\n"
    assert problems(text, check_certificate=lambda source: facts) == [
        "2: certificate.key: /k is another's"
    ]


def test_an_authority_covers_every_service(load: Load) -> None:
    config = load(
        "domain: example.com\ncertificate: lets-encrypt\n"
        "services: [{name: a}, {name: b, https: false}]\n"
    )
    assert config.certificate == AcmeCertificate((LETS_ENCRYPT,))
    assert [service.https for service in config.services] == [True, False]
    assert config.listen.https


def test_all_keys_of_an_authority(load: Load) -> None:
    config = load(
        "certificate: {type: acme, server: [https://a, https://b], ca_file: /c, email: a@b, "
        "eab_kid: k, eab_hmac_key: secret, challenges: http-01, dns_hook: /h, "
        'names: ["*.Example.com", a.b]}\n'
    )
    assert config.certificate == AcmeCertificate(
        *(("https://a", "https://b"), "/c", "a@b", "k", Secret("secret"), ("http-01",), "/h"),
        ("*.example.com", "a.b"),
    )
    assert "secret" not in repr(config.certificate)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            '{type: lets-encrypt, names: "*.a.b"}',
            "1: certificate: a wildcard is proven by dns-01: set `dns_hook`",
        ),
        (
            "{type: lets-encrypt, challenges: [dns-01]}",
            "1: certificate: dns-01 needs a `dns_hook`",
        ),
    ],
)
def test_what_an_authority_needs(problems: Problems, text: str, line: str) -> None:
    assert problems(f"certificate: {text}\n") == [line]


def test_files_of_an_authority_are_looked_at(problems: Problems, tmp_path: Path) -> None:
    text = f"certificate: {{type: acme, server: https://a, ca_file: {tmp_path}/none, dns_hook: "
    bad = tmp_path / "hook"
    bad.write_text("")
    assert problems(text + f"{bad}}}\n", check_certificate=check_certificate) == [
        f"1: certificate.ca_file: {tmp_path}/none cannot be read: No such file or directory",
        f"1: certificate.dns_hook: {bad} is no program that can be run",
    ]
