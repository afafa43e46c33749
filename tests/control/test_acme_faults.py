"""Certificates from a real authority that misbehaves: what is served, said, and asked again."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_asyncio
from acme_front import Front, payload, problem
from aiohttp import web
from pebble import Pebble

from gatewayd.control import acme_store, acme_wire
from gatewayd.control.acme_challenges import Proofs, call_hook
from gatewayd.control.acme_issuer import Issuer
from gatewayd.control.acme_server import AcmeServer
from gatewayd.control.acme_store import AcmeStore
from gatewayd.control.acme_wire import AcmeError
from gatewayd.control.publisher import Publisher
from gatewayd.control.renewals import Renewals
from gatewayd.core.certificate import AcmeCertificate
from gatewayd.core.messages import CertificatePair

pytestmark = pytest.mark.asyncio(loop_scope="module")

NAME = "a.example.com"
DAY = 86400.0


class Board:
    """Where workers would be."""

    def __init__(self) -> None:
        self.http: list[Mapping[str, str]] = []
        self.alpn: list[Mapping[str, CertificatePair]] = []

    async def challenge(
        self, http01: Mapping[str, str], alpn: Mapping[str, CertificatePair]
    ) -> None:
        self.http.append(http01)
        self.alpn.append(alpn)


class Bench:
    """Renewals on their own, with clocks of ours."""

    def __init__(self, folder: Path, *servers: str, ca_file: Path, **settings: Any) -> None:
        self.settings = AcmeCertificate(servers, str(ca_file), **settings)
        self.board = Board()
        self.later_s = 0.0  # both clocks
        self.off_s = 0.0  # the wall's alone
        self.changes = 0
        store = AcmeStore(folder)
        clocks: dict[str, Any] = {
            "clock": lambda: time.time() + self.later_s + self.off_s,
            "monotonic": lambda: time.monotonic() + self.later_s,
        }
        proofs = Proofs(cast(Publisher, self.board))
        self.issuer = Issuer(proofs, store, **clocks)
        self.renewals = Renewals(store, self.issuer, self._changed, **clocks, chance=lambda: 0.5)

    async def _changed(self) -> None:
        self.changes += 1

    async def __aenter__(self) -> Bench:
        await self.renewals.load()
        await self.issuer.follow(self.settings)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.renewals.aclose()

    async def look(self, *names: str) -> None:
        """One look, and the end of what it began."""
        await self.renewals.look(names or (NAME,))
        for managed in list(self.renewals.all()):
            for task in (managed.issuing, managed.asking):
                if task is not None:
                    await task

    @property
    def serial(self) -> bytes | None:
        managed = self.renewals.find(NAME)
        return None if managed is None or managed.issued is None else managed.issued.chain

    @property
    def fault(self) -> str:
        managed = self.renewals.find(NAME)
        assert managed is not None
        return managed.fault or ""


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def pebble(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pebble]:
    home = tmp_path_factory.mktemp("pebble")
    # Its validation has its tests in tests/whole. Requests are counted here.
    env = {"PEBBLE_VA_ALWAYS_VALID": "1", "PEBBLE_WFE_NONCEREJECT": "0"}
    async with Pebble(home, env=env, domainBlocklist=["blocked.example.com"]) as pebble:
        yield pebble


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared_front(pebble: Pebble) -> AsyncIterator[Front]:
    async with Front(pebble, pebble.home) as front:
        yield front


@pytest.fixture
def front(shared_front: Front) -> Front:
    shared_front.calm()
    return shared_front


@pytest_asyncio.fixture(loop_scope="module")
async def bench(tmp_path: Path, pebble: Pebble, front: Front) -> AsyncIterator[Bench]:
    async with Bench(tmp_path, front.directory, ca_file=pebble.ca_file) as bench:
        yield bench


def orders(front: Front) -> int:
    return front.asked.count("/order-plz")


async def test_an_authority_that_is_down_is_asked_again_and_the_old_one_serves(
    bench: Bench, front: Front, caplog: pytest.LogCaptureFixture
) -> None:
    await bench.look()
    first = bench.serial
    assert first is not None
    assert bench.changes == 1

    async def down(path: str, body: bytes) -> None:
        raise ConnectionResetError

    front.before = down
    bench.later_s = 61 * DAY
    await bench.look()
    assert bench.serial == first
    assert "cannot be asked" in bench.fault
    assert f"no certificate for {NAME}: " in caplog.text
    assert "the one there is serves on. Tried again in 68 s" in caplog.text

    front.calm()
    await bench.look()
    assert front.asked == []  # not yet
    bench.later_s += 69
    await bench.look()
    assert bench.serial not in (None, first)


async def test_a_slow_authority_delays_nothing_else(
    bench: Bench, front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acme_wire, "_TIMEOUT", acme_wire.aiohttp.ClientTimeout(total=0.2))
    front.delay_s = 0.5
    began = time.monotonic()
    await bench.renewals.look((NAME, "b.example.com"))
    assert time.monotonic() - began < 0.2
    await bench.look()
    assert "does not answer in time" in bench.fault


async def test_who_stops_waiting_leaves_nothing_behind(bench: Bench, front: Front) -> None:
    await bench.renewals.look(())
    front.delay_s = 0.5
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await bench.renewals.ensure(NAME)
    managed = bench.renewals.find(NAME)
    assert managed is None or managed.issuing is None or managed.issuing.done()
    await bench.renewals.look(())
    assert bench.renewals.find(NAME) is None


async def test_wrong_nonces_are_replaced_and_not_for_ever(bench: Bench, front: Front) -> None:
    refused = 0

    async def refuse(path: str, body: bytes) -> web.Response | None:
        nonlocal refused
        if path == "/order-plz" and refused < limit:
            refused += 1
            return problem("badNonce")
        return None

    front.before = refuse
    limit = 5
    await bench.look()
    assert refused == 5
    assert bench.serial is not None

    limit, refused = 10_000, 0
    with pytest.raises(AcmeError, match="refuses its own nonces"):
        await bench.renewals.renew(NAME)
    assert 5 < refused < 30


async def test_a_rejected_order_says_why(bench: Bench, front: Front) -> None:
    with pytest.raises(AcmeError, match=r"issues nothing for such a name.*blocked"):
        await bench.renewals.ensure("blocked.example.com")


@pytest.mark.parametrize(
    ("kind", "advice"),
    [("caa", "CAA record"), ("unauthorized", "another answer than ours"), ("dns", "A or AAAA")],
)
async def test_a_name_that_was_not_proven_is_tried_the_other_way(
    bench: Bench, front: Front, kind: str, advice: str
) -> None:
    tried = False

    async def kept_back(path: str, body: bytes) -> web.Response | None:
        # The authority is never told to look: of names that it found proven it reuses one in a
        # hundred authorizations even when it is told to reuse none.
        nonlocal tried
        tried = path.startswith("/chalZ/") or (tried and path != "/order-plz")
        return web.json_response({}) if path.startswith("/chalZ/") else None

    def unproven(path: str, body: bytes) -> bytes:
        if not path.startswith("/authZ/"):
            return body
        found = json.loads(body)
        fault = {"type": f"urn:ietf:params:acme:error:{kind}", "detail": "its words"}
        if tried:
            found["status"] = "invalid"
        found["challenges"] = [{**c, "error": fault} for c in found["challenges"]]
        return json.dumps(found).encode()

    front.before, front.after = kept_back, unproven
    await bench.look()
    assert f"http-01: {advice}" in bench.fault or advice in bench.fault
    assert "tls-alpn-01: " in bench.fault
    assert orders(front) == 2
    # Nothing is shown any more once it is over.
    assert any(bench.board.http)
    assert any(NAME in shown for shown in bench.board.alpn)
    assert (bench.board.http[-1], bench.board.alpn[-1]) == ({}, {})


async def test_a_rate_limit_is_kept_and_the_next_authority_asked(
    tmp_path: Path, pebble: Pebble, front: Front
) -> None:
    async def limited(path: str, body: bytes) -> web.Response | None:
        if path == "/order-plz":
            return problem("rateLimited", "too many", 429, **{"Retry-After": "7200"})
        return None

    front.before = limited
    async with Bench(tmp_path, front.directory, ca_file=pebble.ca_file) as bench:
        await bench.look()
        assert "a rate limit of the authority is reached (it says: too many)" in bench.fault
        assert "tried again in 2.0 h" in bench.fault
        bench.later_s = 7000
        await bench.look()
        assert orders(front) == 1
        with pytest.raises(AcmeError, match="asked not to be asked before"):
            await bench.renewals.renew(NAME)
        assert orders(front) == 1  # whoever wants it

        both = replace(bench.settings, servers=(front.directory, pebble.directory))
        assert await bench.issuer.follow(both)
        bench.renewals.try_again()
        await bench.look()
        managed = bench.renewals.find(NAME)
        assert managed is not None
        assert managed.issued is not None
        assert managed.issued.server == pebble.directory


async def test_an_account_that_is_gone_is_made_again(tmp_path: Path) -> None:
    env = {"PEBBLE_VA_ALWAYS_VALID": "1"}
    async with (
        Pebble(tmp_path, env=env) as pebble,
        Bench(tmp_path, pebble.directory, ca_file=pebble.ca_file) as bench,
    ):
        await bench.look()
        first = bench.serial
        await pebble.stop()
        await pebble.start()  # it keeps all in memory
        await bench.renewals.renew(NAME)
        assert bench.serial != first
        # What it replaced is on disk: another life asks for no account.
        async with Bench(tmp_path, pebble.directory, ca_file=pebble.ca_file) as next_life:
            assert next_life.serial == bench.serial
            await next_life.renewals.renew(NAME)


@pytest.mark.parametrize(("off_s", "way"), [(3600, "ahead of"), (-3600, "behind")])
async def test_a_wrong_clock_is_told_and_does_no_harm(
    bench: Bench, front: Front, off_s: int, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    bench.off_s = off_s
    await bench.look()
    assert bench.serial is not None
    assert f"{way} that of {front.directory}" in caplog.text
    if off_s < 0:
        assert "is valid only in" in caplog.text
        assert "is the clock of this machine right?" in caplog.text
    count = orders(front)
    await bench.look()
    assert orders(front) == count


async def test_a_certificate_that_is_due_at_once_is_not_asked_for_again_and_again(
    bench: Bench, front: Front
) -> None:
    bench.off_s = 80 * DAY
    await bench.look()
    assert bench.serial is not None
    assert "due again by this machine's clock" in bench.fault
    for _ in range(3):
        await bench.look()
    assert orders(front) == 1


async def test_a_full_disk_is_told_once_and_the_certificate_saved_later(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write = acme_store.write_private

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(acme_store, "write_private", full)
    caplog.set_level(logging.INFO)
    await bench.look()
    assert bench.changes == 1  # served
    bench.later_s += 11
    await bench.look()
    assert caplog.text.count("cannot be saved: No space left on device; it is kept in memory") == 1
    kept = tmp_path / "certificates" / f"{NAME}.pem"
    assert not kept.exists()

    monkeypatch.setattr(acme_store, "write_private", write)
    bench.later_s += 11
    await bench.look()
    assert "is saved now" in caplog.text
    assert bench.serial is not None
    assert kept.read_bytes().endswith(bench.serial)


async def test_renewal_is_when_the_authority_says_so(bench: Bench, front: Front) -> None:
    window = [30 * DAY, 31 * DAY]
    replaced: list[object] = []
    asked: list[str] = []

    def advised(path: str, body: bytes) -> bytes:
        if path != "/dir":
            return body
        found = json.loads(body)
        return json.dumps({**found, "renewalInfo": front.directory[:-4] + "/ari"}).encode()

    async def advice(path: str, body: bytes) -> web.Response | None:
        if path.startswith("/ari/"):
            asked.append(path)
            ends = [datetime.fromtimestamp(began + each, UTC).isoformat() for each in window]
            told = {"suggestedWindow": {"start": ends[0], "end": ends[1]}}
            return web.json_response(told, headers={"Retry-After": "86400"})
        if path == "/order-plz":
            replaced.append(payload(body).get("replaces"))
        return None

    front.before, front.after = advice, advised
    began = time.time()
    await bench.look()
    first = bench.serial
    await bench.look()
    assert len(asked) == 1
    await bench.look()
    assert len(asked) == 1  # not before a day has gone
    bench.later_s = 30.4 * DAY
    await bench.look()
    assert bench.serial == first
    window[:] = [0.0, 1.0]  # a month early: it was revoked, say
    bench.later_s += 1.1 * DAY - 0.4 * DAY
    await bench.look()
    await bench.look()
    assert bench.serial != first
    assert replaced == [None, asked[0].removeprefix("/ari/")]


async def test_an_order_that_takes_hours_is_not_asked_about_before(
    bench: Bench, front: Front
) -> None:
    async def later(path: str, body: bytes) -> web.Response | None:
        if path.startswith("/my-order/"):
            return web.json_response({"status": "pending"}, headers={"Retry-After": "5000"})
        return None

    front.before = later
    await bench.look()
    assert "wants to be asked again in 5000 s only" in bench.fault
    front.before = None
    bench.later_s = 4900
    await bench.look()
    assert orders(front) == 1
    bench.later_s = 5100
    await bench.look()
    assert bench.serial is not None


async def test_what_cannot_be_revoked_is_served_on(bench: Bench, front: Front) -> None:
    await bench.look()
    managed = bench.renewals.find(NAME)
    assert managed is not None
    assert managed.issued is not None

    async def no(path: str, body: bytes) -> web.Response | None:
        return problem("serverInternal", status=500) if "revoke" in path else None

    front.before = no
    with pytest.raises(AcmeError, match="a fault on the authority's side"):
        await bench.renewals.revoke(managed, managed.issued, 0)
    assert managed.read is not None
    front.before = None
    await bench.renewals.revoke(managed, managed.issued, 4)
    assert list(bench.renewals.reads()) == []
    await bench.look()  # it is wanted
    assert bench.serial is not None


async def test_a_few_orders_at_a_time(
    bench: Bench, front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, most = 0, 0
    issue = AcmeServer.issue

    async def counted(self: AcmeServer, *args: Any) -> bytes:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            return await issue(self, *args)
        finally:
            running -= 1

    monkeypatch.setattr(AcmeServer, "issue", counted)
    names = [f"n{i}.example.com" for i in range(12)]
    await bench.look(*names)
    assert len(list(bench.renewals.reads())) == 12
    assert most == 6
    assert front.asked.count("/sign-me-up") == 1  # one account for all


async def test_what_nobody_wants_is_not_renewed_and_goes_in_the_end(
    bench: Bench, front: Front, tmp_path: Path
) -> None:
    await bench.look()
    bench.later_s = 91 * DAY
    await bench.renewals.look(())
    assert orders(front) == 1
    assert len(list(bench.renewals.reads())) == 1
    bench.later_s = 121 * DAY
    await bench.renewals.look(())
    assert list(bench.renewals.reads()) == []
    assert list((tmp_path / "certificates").glob("*.pem")) == []


async def test_damaged_files_are_told_and_asked_for_again(
    bench: Bench, tmp_path: Path, pebble: Pebble, front: Front, caplog: pytest.LogCaptureFixture
) -> None:
    await bench.look()
    folder = tmp_path / "certificates"
    (folder / f"{NAME}.pem").write_bytes(b"\0" * 100)
    for account in (folder / "accounts").iterdir():
        account.write_bytes(b"{")
    async with Bench(tmp_path, front.directory, ca_file=pebble.ca_file) as next_life:
        assert "is damaged" in caplog.text
        await next_life.look()
        assert next_life.serial is not None
        assert "account at" in caplog.text


async def test_a_hook_that_fails_is_quoted_and_one_that_hangs_is_ended(tmp_path: Path) -> None:
    hook = tmp_path / "hook"
    hook.write_text('#!/bin/sh\necho "$@" >> "$0.calls"; echo "no such zone" >&2; exit 3\n')
    hook.chmod(0o755)
    with pytest.raises(AcmeError, match="ended with status 3 and said: no such zone"):
        await call_hook(str(hook), "add", "a.b", "_acme-challenge.a.b", "v")
    assert (tmp_path / "hook.calls").read_text() == "add a.b _acme-challenge.a.b v\n"
    hook.write_text("#!/bin/sh\nsleep 60 & wait\n")
    with pytest.raises(AcmeError, match=r"took more than 0\.2 s"):
        await call_hook(str(hook), "add", "a.b", "n", "v", timeout=0.2)
    with pytest.raises(AcmeError, match="cannot be run: No such file"):
        await call_hook(str(tmp_path / "none"), "add", "a.b", "n", "v")


async def test_a_wildcard_needs_a_hook(bench: Bench) -> None:
    with pytest.raises(AcmeError, match="dns-01 only: set `dns_hook`"):
        await bench.renewals.ensure("*.example.com")
