"""Certificates of files: read, watched, kept while they are broken, told to every worker."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority, make_authority, write_pair
from gateway import Gateway, looks_often, running
from waiting import until

from gatewayd.config.load import load_config
from gatewayd.control.certificate_check import check_certificate
from gatewayd.control.certificate_files import CertificateFiles
from gatewayd.control.certs import CertificateStatus
from gatewayd.core.certificate import FileCertificate, LiveFolder

FILE = """
domain: example.com
listen: {{http: "127.0.0.1:0", https: "127.0.0.1:0", admin: "unix:{home}/admin.sock"}}
workers: 2
state_dir: {home}/state
certificate: {{type: file, cert: {home}/wild.pem, key: {home}/wild.key}}
services:
  - name: llama
  - name: own
    domain: own.org
    certificate: {{type: file, cert: {home}/own.pem, key: {home}/own.key, default: true}}
"""


@pytest.fixture(scope="module")
def authority() -> Authority:
    return make_authority()


@pytest.fixture(autouse=True)
def files_are_looked_at_often(monkeypatch: pytest.MonkeyPatch) -> None:
    looks_often(monkeypatch)


@pytest.fixture
def frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[Any]]:
    import json

    log = tmp_path / "frames"
    monkeypatch.setenv("SCRIPTED_LOG", str(log))

    def read(kind: str) -> list[Any]:
        found = [json.loads(line) for line in log.read_text().splitlines()]
        return [frame for frame in found if frame["frame"] == kind]

    return read


@asynccontextmanager
async def gateway(home: Path, authority: Authority) -> AsyncIterator[Gateway]:
    write_pair(authority.pair("*.example.com"), home, "wild")
    write_pair(authority.pair("own.org", "llama.example.com"), home, "own")
    async with running(home, FILE) as gateway:
        yield gateway


async def test_every_worker_gets_each_name_once_a_services_own_first(
    tmp_path: Path, authority: Authority, frames: Callable[[str], list[Any]]
) -> None:
    async with gateway(tmp_path, authority) as running:
        sent = frames("certificates")
        assert len(sent) == 2
        assert sent[0]["names"] == ["own.org", "llama.example.com", "*.example.com"]
        assert sent[0]["default"] == "own.org"
        _, status = await running.get("/api/status")
        assert [c["domains"] for c in status["certificates"]] == [
            ["own.org", "llama.example.com"],
            ["*.example.com"],
        ]
        assert status["certificates"][0]["issuer"] == "An authority of tests"
        assert {entry["kind"] for entry in status["listeners"]} == {"http", "https", "admin"}
        _, metrics = await running.get("/metrics")
        (line,) = [x for x in metrics.splitlines() if 'seconds{domain="*.example.com"}' in x]
        assert float(line.split()[1]) == pytest.approx(time.time() + 30 * 86400, abs=3600)


async def test_changed_files_are_served_and_broken_ones_are_not(
    tmp_path: Path,
    authority: Authority,
    frames: Callable[[str], list[Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with gateway(tmp_path, authority) as running:
        certificates = running.control.parts.certificates
        before = certificates.pairs()
        write_pair(authority.pair("*.example.com", "new.org"), tmp_path, "wild")
        await until(lambda: frames("certificates")[-1]["names"][-1] == "new.org")
        assert certificates.pairs() != before

        good = certificates.pairs()
        (tmp_path / "wild.key").write_bytes(authority.pair("x.org").key)
        await until(lambda: certificates.status()[1].fault is not None)
        fault = certificates.status()[1].fault
        assert fault == (
            f"{tmp_path}/wild.key: the private key does not belong to the certificate"
            "; the one before stays"
        )
        assert caplog.text.count("does not belong") == 1
        assert certificates.pairs() == good

        (tmp_path / "wild.pem").unlink()
        await until(lambda: "cannot be read" in (certificates.status()[1].fault or ""))
        assert certificates.pairs() == good

        write_pair(authority.pair("*.example.com", days=-0.5), tmp_path, "wild")
        await until(lambda: "has expired" in (certificates.status()[1].fault or ""))
        assert certificates.pairs() == good

        write_pair(authority.pair("*.example.com"), tmp_path, "wild")
        await until(lambda: certificates.status()[1].fault is None)
        assert certificates.pairs() != good


async def test_a_reload_follows_the_file(
    tmp_path: Path, authority: Authority, frames: Callable[[str], list[Any]]
) -> None:
    async with gateway(tmp_path, authority) as running:
        text = running.file.read_text()
        write_pair(authority.pair("third.org"), tmp_path, "third")
        third = f"{{type: file, cert: {tmp_path}/third.pem, key: {tmp_path}/third.key}}"
        running.file.write_text(
            f"{text}  - {{name: third, domain: third.org, certificate: {third}}}\n"
        )
        status, _ = await running.post("/api/reload", {})
        assert status == 200
        assert frames("certificates")[-1]["names"].count("third.org") == 1
        running.file.write_text(text)
        await running.post("/api/reload", {})
        assert "third.org" not in frames("certificates")[-1]["names"]


async def test_a_service_that_lost_its_certificate_is_named(
    tmp_path: Path,
    authority: Authority,
    frames: Callable[[str], list[Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with gateway(tmp_path, authority) as running:
        body = {"run_name": "new", "domain": "new.example.com", "https": True, "router": None}
        await running.post("/api/registry/main/services/register", body)
        status = running.control.parts.certificates.status
        assert [each.source for each in status() if each.fault] == []
        write_pair(authority.pair("llama.example.com"), tmp_path, "wild")
        await until(lambda: any(each.fault for each in status()))
        (bare,) = [each for each in status() if each.fault]
        assert (bare.source, bare.domains) == ("service main/new", ("new.example.com",))
        await until(lambda: "no certificate is for new.example.com" in caplog.text)
        assert caplog.text.count("no certificate is for") == 1


async def test_the_registry_takes_https_for_what_is_covered(
    tmp_path: Path, authority: Authority, frames: Callable[[str], list[Any]]
) -> None:
    async with gateway(tmp_path, authority) as running:
        path = "/api/registry/main/services/register"
        body = {"run_name": "new", "domain": "new.example.com", "https": True, "router": None}
        assert (await running.post(path, body))[0] == 200
        assert running.control.parts.state.services["main/new"].https
        status, answer = await running.post(path, {**body, "run_name": "x", "domain": "x.org"})
        assert status == 400
        assert "x.org" in answer["detail"]
        assert "main/x" not in running.control.parts.state.services


def test_what_nobody_renewed_is_told(authority: Authority, tmp_path: Path) -> None:
    from gatewayd.control.certs import time_fault

    day = 86400.0
    assert time_fault(0, 100 * day, 50 * day) is None
    assert time_fault(0, 100 * day, 80 * day) == "expires in 20.0 days and was not renewed"
    assert time_fault(0, 6 * day, 5 * day) == "expires in 1.0 days and was not renewed"
    assert time_fault(0, day, day) == "has expired"
    assert "clock" in (time_fault(day, 2 * day, 0) or "")


# --- reading


def test_the_folder_of_certbot_is_read_and_followed(authority: Authority, tmp_path: Path) -> None:
    def put(name: str, *names: str) -> None:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        pair = authority.pair(*names)
        (folder / "fullchain.pem").write_bytes(pair.chain)
        (folder / "privkey.pem").write_bytes(pair.key)

    put("a.org", "a.org", "www.a.org")
    (tmp_path / "README").write_text("not a folder")
    (tmp_path / "empty").mkdir()
    files = CertificateFiles()
    source = LiveFolder(str(tmp_path))
    files.follow([source], time.time())
    assert [w.good.names for w in files.of(source) if w.good] == [("a.org", "www.a.org")]
    put("b.org", "b.org")
    assert files.look(time.time())
    assert [w.good.names[0] for w in files.of(source) if w.good] == ["a.org", "b.org"]
    assert not files.look(time.time())
    facts = check_certificate(source)
    assert facts.names == {"a.org", "www.a.org", "b.org"}
    assert check_certificate(LiveFolder("/nowhere")).faults[0][0] == "dir"

    def served() -> list[str]:
        return [w.good.names[0] for w in files.of(source) if w.good]

    # A link that certbot is about to replace, and a disk that is not there for a while.
    link, target = tmp_path / "a.org/fullchain.pem", tmp_path / "fullchain1.pem"
    link.rename(target)
    assert not files.look(time.time())
    link.symlink_to(target)
    assert not files.look(time.time())
    away = tmp_path.rename(tmp_path.with_name("away"))
    for _ in range(3):
        assert not files.look(time.time())
        assert served() == ["a.org", "b.org"]
    away.rename(tmp_path)
    assert not files.look(time.time())
    # One that may not be looked at any more (a loop, since root may look at anything).
    link.unlink()
    link.symlink_to(link)
    for _ in range(3):
        assert not files.look(time.time())
    assert served() == ["a.org", "b.org"]
    assert "cannot be read" in str(files.of(source)[0].fault)
    # Deleted by certbot.
    link.unlink()
    assert not files.look(time.time())
    assert files.look(time.time())
    assert served() == ["b.org"]


async def test_a_folder_that_cannot_be_read_any_more_is_told(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    live = tmp_path / "live"
    (live / "a.org").mkdir(parents=True)
    pair = authority.pair("a.org")
    (live / "a.org/fullchain.pem").write_bytes(pair.chain)
    (live / "a.org/privkey.pem").write_bytes(pair.key)
    file = (
        FILE.split("certificate:")[0]
        + f"certificate: {{{{type: letsencrypt-live, dir: {live}}}}}\n"
    )
    async with running(tmp_path, file) as gateway:
        certificates = gateway.control.parts.certificates
        (served,) = certificates.status()
        assert served.fault is None
        live.rename(tmp_path / "away")
        await until(lambda: len(certificates.status()) == 2)
        fault = f"{live} cannot be read: No such file or directory"
        kept, folder = certificates.status()
        assert replace(kept, fault=None) == served  # at the second look its own file is missing too
        assert folder == CertificateStatus((), "", None, source=str(live), fault=fault)
        (tmp_path / "away").rename(live)
        await until(lambda: certificates.status() == [served])
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert [text for text in warnings if text.startswith("certificates: ")] == [
        f"certificates: {fault}; those there were stay",
        f"certificates: {live} is followed again",
    ]


@pytest.mark.parametrize(
    ("break_it", "at", "text"),
    [
        (lambda cert, key: cert.unlink(), "cert", "cannot be read: No such file"),
        (lambda cert, key: key.unlink(), "key", "cannot be read: No such file"),
        (lambda cert, key: cert.write_text("x"), "cert", "holds no certificate in PEM"),
        (lambda cert, key: key.write_text("x"), "key", "holds no private key in PEM"),
        (
            lambda cert, key: key.write_text(
                "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
            ),
            "cert",
            "not valid PEM",
        ),
        (lambda cert, key: cert.write_bytes(b"x" * (1 << 20) + b"x"), "cert", "is longer than"),
    ],
)
def test_what_is_wrong_with_a_pair_of_files(
    authority: Authority, tmp_path: Path, break_it: Callable[..., Any], at: str, text: str
) -> None:
    cert, key = write_pair(authority.pair("a.org"), tmp_path, "a")
    break_it(cert, key)
    ((where, fault),) = check_certificate(FileCertificate(str(cert), str(key))).faults
    assert where == at
    assert text in fault


def test_a_key_that_everybody_can_read_is_told(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cert, key = write_pair(authority.pair("a.org"), tmp_path, "a")
    files = CertificateFiles()
    files.follow([FileCertificate(str(cert), str(key))], time.time())
    assert caplog.text == ""
    key.chmod(0o644)
    files.follow([FileCertificate(str(cert), str(key))], time.time())
    assert caplog.text == ""  # nothing of it has changed
    key.write_bytes(key.read_bytes() + b"\n")
    files.follow([FileCertificate(str(cert), str(key))], time.time())
    assert f"everybody on this machine can read {key}" in caplog.text


def test_a_key_with_a_password_is_refused_without_asking(
    authority: Authority, tmp_path: Path
) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    cert, key = write_pair(authority.pair("a.org"), tmp_path, "a")
    key.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    assert check_certificate(FileCertificate(str(cert), str(key))).faults == (
        ("key", f"{key}: the private key is encrypted"),
    )


def test_a_file_with_a_broken_pair_does_not_load(authority: Authority, tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text(f"certificate: {{type: file, cert: {tmp_path}/no, key: {tmp_path}/no}}\n")
    with pytest.raises(Exception, match=r"yaml:1: certificate\.cert: .* cannot be read"):
        load_config(str(path), {}, check_certificate=check_certificate)


def test_500_certificates_are_read_within_a_second(authority: Authority, tmp_path: Path) -> None:
    """Twice, as a start does: when the file is checked, and when they are to be served."""
    sources = []
    for number in range(500):
        cert, key = write_pair(authority.pair(f"{number}.example"), tmp_path, str(number))
        sources.append(FileCertificate(str(cert), str(key)))
    began = time.process_time()
    for source in sources:
        assert not check_certificate(source).faults
    files = CertificateFiles()
    files.follow(sources, time.time())
    assert time.process_time() - began < 1.0
    assert len([w for w in files.all() if w.good]) == 500
