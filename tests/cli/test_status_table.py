"""What `gatewayd status` says about the ways that requests went."""

from __future__ import annotations

from typing import Any

import pytest

from gatewayd.cli.table import render, render_certificates

NONE = {"direct": 0, "through": 0, "steered": 0, "fallback": 0}


def status(
    requests: dict[str, int], router: dict[str, Any] | None = None, *, last_minute: int = 0
) -> dict[str, Any]:
    service = {
        "project": "main",
        "name": "llama",
        "domains": ["llama.test"],
        "origin": "file",
        "auth": False,
        "model": None,
        "router": router,
        "requests": {**NONE, **requests},
        "requests_last_minute": last_minute,
        "replicas": [],
    }
    return {
        "version": "0",
        "name": "gw",
        "project": "main",
        "config": None,
        "pid": 1,
        "uptime_seconds": 1.0,
        "ready": True,
        "draining": False,
        "snapshot": 1,
        "listeners": [],
        "workers": [],
        "bridge": None,
        "services": [service],
        "certificates": [],
        "cloud": {},
    }


def cells(text: str, first: str) -> list[list[str]]:
    """The columns of the table that begins with `first`."""
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith(first))
    head = lines[at]
    starts = sorted({head.index(name.strip()) for name in head.split("  ") if name.strip()})
    rows = []
    for line in lines[at + 1 :]:
        if not line:
            break
        ends = [*starts[1:], None]
        rows.append([line[a:b].strip() for a, b in zip(starts, ends, strict=True)])
    return rows


@pytest.mark.parametrize(
    ("requests", "shown"),
    [
        ({}, "0"),
        ({"direct": 7}, "7: 100% direct"),
        ({"steered": 2, "through": 1}, "3: 33% through, 67% steered"),
        ({"steered": 97, "fallback": 3}, "100: 97% steered, 3% fallback"),
        # One of very many is seen, and all but one are not all.
        ({"steered": 10**6, "fallback": 1}, "1000001: 99.9% steered, 0.1% fallback"),
    ],
)
def test_the_share_of_each_way(requests: dict[str, int], shown: str) -> None:
    (row,) = cells(render(status(requests)), "SERVICE")
    assert row[-1] == shown


@pytest.mark.parametrize(
    ("last_minute", "shown"), [(0, "0"), (1, "0.02"), (59, "0.98"), (60, "1.0"), (7404, "123.4")]
)
def test_requests_per_second(last_minute: int, shown: str) -> None:
    (row,) = cells(render(status({}, last_minute=last_minute)), "SERVICE")
    assert row[-2] == shown


def test_the_mode_of_a_router() -> None:
    router = {
        "type": "scripted",
        "policy": None,
        "mode": "steer",
        "state": "ready",
        "endpoint": "127.0.0.1:20000",
        "targets": {"desired": ["a", "b"], "serving": ["a"]},
        "lacks": ["prefill", "decode"],
        "restarts": 2,
        "fault": None,
        "last_exit": None,
        "last_words": [],
    }
    (row,) = cells(render(status({}, router)), "ROUTER OF")
    state = "ready, no prefill, no decode"
    assert row == ["llama", "scripted", "steer", state, "127.0.0.1:20000", "1/2", "2"]


def test_what_is_wrong_with_a_certificate_is_told_with_its_names() -> None:
    end = "2027-02-26T08:11:02+00:00"
    faulty = {"issuer": "X", "expires": end, "source": "https://ca/dir", "fault": "it is down"}
    unnamed = {"domains": [], "issuer": "", "expires": None, "source": "/live", "fault": "is gone"}
    lines = render_certificates([{"domains": ["a.test", "b.test"], **faulty}, unnamed]).splitlines()
    assert lines[-2:] == ["certificate a.test b.test: it is down", "/live: is gone"]
