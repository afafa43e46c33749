from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from acme_bench import Bench
from acme_front import Front
from fake_engine import FakeEngine
from gatewayd_run import MakeRun, Run
from pebble import Pebble
from plant import Plant


@pytest.fixture
def make_plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plant]:
    log = tmp_path / "frames"
    monkeypatch.setenv("SCRIPTED_LOG", str(log))

    def make(**options: Any) -> Plant:
        return Plant(log, **options)

    return make


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder with a short name: the path of a Unix socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="gw") as folder:
        yield Path(folder)


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


@pytest.fixture
def make_run(home: Path) -> Iterator[MakeRun]:
    runs: list[Run] = []

    def make(**options: Any) -> Run:
        runs.append(Run(home, **options))
        return runs[-1]

    yield make
    for run in reversed(runs):
        if run.popen is not None:
            run.destroy()


@pytest.fixture
async def engine(home: Path) -> AsyncIterator[FakeEngine]:
    async with FakeEngine("a", home / "a.sock") as engine:
        yield engine


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
        yield session
