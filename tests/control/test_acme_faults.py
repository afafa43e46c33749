"""Certificates from a real authority that misbehaves: what is served, said, and asked again."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from acme_bench import DAY, NAME, Bench, orders
from acme_front import Front, problem
from aiohttp import web
from pebble import Pebble

from gatewayd.control import acme_wire
from gatewayd.control.acme_challenges import call_hook
from gatewayd.control.acme_server import AcmeServer
from gatewayd.control.acme_wire import AcmeError

pytestmark = pytest.mark.asyncio(loop_scope="module")


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
    monkeypatch.setattr(acme_wire, "_TIMEOUT", acme_wire.aiohttp.ClientTimeout(total=1))
    front.delay_s = 2
    began = time.monotonic()
    await bench.renewals.look((NAME, "b.example.com"))
    assert time.monotonic() - began < 1
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
    ("kind", "advice", "other"),
    [
        ("caa", "CAA record", False),
        ("unauthorized", "another answer than ours", True),
        ("dns", "A or AAAA", False),
    ],
)
async def test_a_name_that_was_not_proven_is_tried_the_other_way(
    bench: Bench, front: Front, kind: str, advice: str, other: bool
) -> None:
    tried = False

    async def kept_back(path: str, body: bytes) -> web.Response | None:
        # The authority is never told to look: of names that it found proven it reuses one in a
        # hundred authorizations even when it is told to reuse none.
        nonlocal tried
        tried = path.startswith("/chalZ/") or (tried and path != "/order-plz")
        return web.json_response({}) if path.startswith("/chalZ/") else None

    async def down(path: str, body: bytes) -> web.Response | None:
        raise ConnectionError

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
    assert ("tls-alpn-01: " in bench.fault) is other
    assert orders(front) == (2 if other else 1)
    # Nothing is shown any more once it is over.
    assert any(bench.board.http)
    assert any(NAME in shown for shown in bench.board.alpn) is other
    assert (bench.board.http[-1], bench.board.alpn[-1]) == ({}, {})
    # Later each in its turn, whatever else failed between; all again when a person asks.
    front.before = down
    bench.later_s += 100.0
    await bench.look()
    front.before = kept_back
    for way in ("tls-alpn-01: ", "http-01: "):
        front.asked.clear()
        bench.later_s += 5000.0
        await bench.look()
        assert orders(front) == 1
        assert bench.fault.startswith(way)
    front.asked.clear()
    with pytest.raises(AcmeError):
        await bench.renewals.renew(NAME)
    assert orders(front) == (2 if other else 1)


async def test_a_rate_limit_is_kept_and_the_next_authority_asked(
    tmp_path: Path, pebble: Pebble, front: Front, caplog: pytest.LogCaptureFixture
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
        # Else nobody would hear that the one they prefer does nothing for them any more.
        told = f"{front.directory} gives no certificate for {NAME}, the next authority is asked: "
        assert told in caplog.text


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
