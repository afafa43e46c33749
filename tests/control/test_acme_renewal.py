"""When certificates of a real authority are renewed, and what of them is kept."""

from __future__ import annotations

import errno
import json
import logging
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from acme_bench import DAY, NAME, Bench, orders
from acme_front import Front, payload, problem
from aiohttp import web
from pebble import Pebble

from gatewayd.control import acme_store
from gatewayd.control.acme_wire import AcmeError

pytestmark = pytest.mark.asyncio(loop_scope="module")


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


async def test_a_renewal_that_somebody_asked_for_is_tried_again_as_the_log_says(
    bench: Bench, front: Front, caplog: pytest.LogCaptureFixture
) -> None:
    await bench.look()
    first = bench.serial

    async def down(path: str, body: bytes) -> None:
        raise ConnectionResetError

    front.before = down
    with pytest.raises(AcmeError):
        await bench.renewals.renew(NAME)  # long before it is due
    assert "the one there is serves on. Tried again in 68 s" in caplog.text
    front.calm()
    bench.later_s += 69
    await bench.look()
    assert bench.serial not in (None, first)
    assert bench.fault == ""


async def test_what_nobody_wants_is_not_said_to_be_tried_again(
    bench: Bench, front: Front, caplog: pytest.LogCaptureFixture
) -> None:
    async def down(path: str, body: bytes) -> None:
        raise ConnectionResetError

    front.before = down
    with pytest.raises(AcmeError):
        await bench.renewals.ensure(NAME)  # a registration, which fails with it
    assert f"no certificate for {NAME}: " in caplog.text
    assert "ried again" not in caplog.text


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
