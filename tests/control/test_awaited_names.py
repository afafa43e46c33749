"""Names that a client came for before their certificate: what workers expect, what is hastened."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import pytest
from gateway import looks_often, running
from waiting import until

from gatewayd.control import renewals as renewals_module
from gatewayd.control.acme_issuer import Issuer
from gatewayd.control.acme_store import AcmeStore, Issued
from gatewayd.control.acme_wire import AcmeError
from gatewayd.control.renewals import Renewals
from gatewayd.core.acme import Problem

NAME = "llama.example.com"
FILE = """
domain: example.com
listen: {{http: "127.0.0.1:0", https: "127.0.0.1:0", admin: "unix:{home}/admin.sock"}}
workers: 2
state_dir: {home}/state
certificate: {{type: acme, server: "https://127.0.0.1:1/dir"}}
services:
  - name: llama
  - {{name: open, https: false}}
"""


class Refusing:
    """An issuer that gives none; `asked` are the times when it was asked."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.problem = Problem("connection", "refused")
        self.asked: list[float] = []
        self._now = now

    async def issue(self, name: str, before: Issued | None, *, every_way: bool) -> Issued:
        self.asked.append(self._now())
        raise AcmeError(self.problem.sentence(), self.problem)

    async def aclose(self) -> None:
        pass


class Bench:
    def __init__(self, home: Path) -> None:
        self.now = 1000.0
        self.issuer = Refusing(lambda: self.now)
        self.renewals = Renewals(
            AcmeStore(home),
            cast(Issuer, self.issuer),
            self._changed,
            monotonic=lambda: self.now,
            chance=lambda: 0.0,
        )

    async def _changed(self) -> None:
        pass

    async def look(self) -> None:
        await self.renewals.look([NAME])
        for managed in self.renewals.all():
            if managed.issuing is not None:
                await managed.issuing

    async def seen_each_second(self, seconds: int) -> list[float]:
        """When the authority is asked while clients keep coming, from now on."""
        began = self.now
        self.issuer.asked.clear()
        for second in range(seconds):
            self.now = began + second
            self.renewals.hasten(NAME)
            await self.look()
        return [at - began for at in self.issuer.asked]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    await bench.renewals.aclose()


async def test_a_client_brings_the_next_try_forward(bench: Bench) -> None:
    assert bench.renewals.prospect(NAME) == "coming"
    for _ in range(4):  # hours of failures
        await bench.look()
        bench.now += 4000
    await bench.look()
    assert bench.renewals.prospect(NAME) == "none"  # clients come back at once
    bench.now += 10
    assert bench.renewals.prospect(NAME) == "paused"
    count = len(bench.issuer.asked)
    await bench.look()
    assert len(bench.issuer.asked) == count
    bench.renewals.hasten(NAME)
    assert bench.renewals.prospect(NAME) == "coming"
    await bench.look()
    assert len(bench.issuer.asked) == count + 1
    assert bench.renewals.prospect(NAME) == "none"


async def test_clients_that_keep_coming_do_not_tire_an_authority_out(bench: Bench) -> None:
    """Nor do they delay anything: without them it is 0, 60, 240, 780, 2400 s."""
    asked = await bench.seen_each_second(3600)
    assert asked == [0, 10, 60, 240, 780, 1810, 2400]
    asked = await bench.seen_each_second(6 * 3600)
    assert len(asked) < 15


@pytest.mark.parametrize(
    "problem",
    [
        Problem("rateLimited", "too many", 429, retry_after=7200.0),
        Problem("rateLimited", "too many", 429),
        Problem("", "busy", 503, retry_after=300.0),
    ],
)
async def test_an_authoritys_word_counts_more_than_a_client(bench: Bench, problem: Problem) -> None:
    bench.issuer.problem = problem
    await bench.look()
    assert bench.renewals.prospect(NAME) == "none"
    bench.renewals.hasten(NAME)
    await bench.look()
    assert len(bench.issuer.asked) == 1
    bench.now += 7201
    assert bench.renewals.prospect(NAME) == "coming"


async def test_another_authority_is_asked_at_once(bench: Bench) -> None:
    bench.issuer.problem = Problem("rateLimited", "too many", 429, retry_after=7200.0)
    await bench.look()
    bench.renewals.try_again()
    assert bench.renewals.prospect(NAME) == "coming"


async def test_workers_hear_what_is_coming_and_control_what_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    looks_often(monkeypatch)
    monkeypatch.setattr(renewals_module, "_HASTE_AFTER_S", 0.02)
    monkeypatch.setenv("SCRIPTED_LOG", str(tmp_path / "frames"))

    def expected() -> list[Any]:
        found = map(json.loads, (tmp_path / "frames").read_text().splitlines())
        return [
            (frame["coming"], frame["paused"]) for frame in found if frame["frame"] == "expected"
        ]

    async with running(tmp_path, FILE) as gateway:
        # Before any look: workers that open their listeners know.
        assert expected()[0] == ([NAME], [])
        await until(lambda: expected()[-1] == ([], [NAME]))
        certificates = gateway.control.parts.certificates
        certificates.sighted(["open.example.com", "else.org", "x.example.com"])
        certificates.sighted([NAME])
        await until(lambda: expected()[-1] == ([], []))
        assert caplog.text.count(f"no certificate for {NAME}") == 2
        assert caplog.text.count("no certificate for") == 2
        gateway.file.write_text(gateway.file.read_text().replace("name: llama", "name: other"))
        assert (await gateway.post("/api/reload", {}))[0] == 200
        await until(lambda: ["other.example.com"] in expected()[-1])
