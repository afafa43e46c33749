"""What a call of the management API says when it fails."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from gatewayd.routers import http_api
from gatewayd.routers.base import RouterError
from gatewayd.routers.http_api import RouterApi


async def test_a_failure_without_words_is_called_by_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A router that accepts and does not answer: that exception has no text."""
    monkeypatch.setattr(http_api, "_TIMEOUT", aiohttp.ClientTimeout(total=0.05))
    held: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: held.append(writer), "127.0.0.1", 0)
    api = RouterApi(server.sockets[0].getsockname()[1], "key", {})
    try:
        with pytest.raises(RouterError, match=r"^GET /workers: \w*Timeout\w*$"):
            await api.targets()
    finally:
        await api.aclose()
        for writer in held:
            writer.close()
        server.close()
