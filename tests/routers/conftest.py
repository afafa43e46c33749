"""Fixtures of a real router for test modules that name its type in `ROUTER`."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio
from live_router import Client, running, settle

from gatewayd.routers.http_router import HttpRouter

pytest.register_assert_rewrite("router_promises")


@pytest.fixture(scope="module")
def router_type(request: pytest.FixtureRequest) -> str:
    return str(request.module.ROUTER)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared(
    router_type: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[HttpRouter]:
    """One router serves most tests of a module."""
    async with running(router_type, tmp_path_factory.mktemp("logs")) as router:
        yield router


@pytest_asyncio.fixture(loop_scope="module")
async def router(shared: HttpRouter) -> AsyncIterator[HttpRouter]:
    """Each test begins and ends without targets."""
    before = shared.pid
    yield shared
    await settle(shared, [])
    assert shared.pid == before  # whatever came and went, it was never restarted
    assert shared.restarts == 0


@pytest_asyncio.fixture(loop_scope="module")
async def client(router: HttpRouter) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession() as session:
        yield Client(router, session)
