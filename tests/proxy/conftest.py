from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import uvloop
from certificates import Authority, make_authority
from harness import Gateway
from steered import Steered

from gatewayd.core.model import Log


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """As production runs it."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(autouse=True)
def fast_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds of fractions of a second are noticed in time; only what should be closed is."""
    monkeypatch.setattr("gatewayd.proxy.sweeper._SWEEP_S", 0.01)
    monkeypatch.setattr("gatewayd.proxy.sweeper._SLOW_S", 0.01)
    monkeypatch.setattr("gatewayd.proxy.deadlines._REST_S", (math.inf, 0.0))
    monkeypatch.setattr("gatewayd.proxy.plane.POOL_IDLE_S", 60.0)
    monkeypatch.setattr("gatewayd.proxy.hop.POOL_IDLE_S", 60.0)
    monkeypatch.setattr("gatewayd.proxy.accesslog._FLUSH_S", 0.005)


@pytest.fixture
def access_log() -> Log:
    """Overridden by tests that read the log."""
    return Log(access="off")


@pytest.fixture
async def gateway(
    tmp_path: Path, access_log: Log, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[Gateway]:
    gateway = Gateway(tmp_path, access_log)
    await gateway.start()
    yield gateway
    await gateway.settle()
    records = [*caplog.get_records("call"), *caplog.records]  # pytest keeps them by phase
    errors = [r.getMessage() for r in records if r.levelno >= logging.ERROR]
    assert not errors


@pytest.fixture
async def steered(gateway: Gateway) -> AsyncIterator[Steered]:
    steered = Steered(gateway)
    yield steered
    await steered.settle()


@pytest.fixture(scope="module")
def authority() -> Authority:
    return make_authority()


@pytest.fixture
async def secure(gateway: Gateway, authority: Authority) -> Gateway:
    await gateway.listen_tls(authority.pair("chat.example"))
    return gateway
