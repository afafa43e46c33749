"""Certificates by ACME, of a real authority that validates against real listeners."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from free_ports import free_range
from pebble import Pebble
from whole_gateway import Gateway, eventually
from whole_replicas import Replica


def configured(home: Path, pebble: Pebble, http: int, https: int, **more: Any) -> dict[str, Any]:
    return {
        "domain": "gw.test",
        "listen": {
            "http": f"127.0.0.1:{http}",
            "https": f"127.0.0.1:{https}",
            "admin": f"unix:{home}/admin.sock",
        },
        "certificate": {
            "type": "acme",
            "server": pebble.directory,
            "ca_file": str(pebble.ca_file),
            **more,
        },
    }


@asynccontextmanager
async def secured(
    home: Path,
    services: list[str],
    *,
    pebble_options: dict[str, Any] | None = None,
    **acme: Any,
) -> AsyncIterator[tuple[Gateway, Pebble, Replica]]:
    http, https = free_range(2)
    replica = Replica("chat", home / "chat.sock")
    async with Pebble(home, http, https, **(pebble_options or {})) as pebble:
        if acme.pop("hook", False):
            acme["dns_hook"] = str(pebble.hook())
        gateway = Gateway(
            home,
            [{"name": name, "replicas": [f"unix:{replica.path}"]} for name in services],
            **configured(home, pebble, http, https, **acme),
        )
        async with replica, gateway:
            yield gateway, pebble, replica


async def shown(gateway: Gateway, host: str, trust: ssl.SSLContext) -> dict[str, Any]:
    """The certificate that a client of this host gets, after a request went through."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", gateway.tls_port, ssl=trust, server_hostname=host
    )
    try:
        writer.write(f"GET /who HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 200"), answer
        found: dict[str, Any] = writer.get_extra_info("peercert")
        return found
    finally:
        writer.close()


async def served(gateway: Gateway, host: str, trust: ssl.SSLContext) -> dict[str, Any]:
    async def there() -> dict[str, Any]:
        try:
            return await shown(gateway, host, trust)
        except (ssl.SSLError, ConnectionError):
            return {}

    return await eventually(there, 20, f"{host} is served")


def names(certificate: dict[str, Any]) -> list[str]:
    return [value for kind, value in certificate["subjectAltName"] if kind == "DNS"]


@pytest.mark.parametrize("challenge", ["http-01", "tls-alpn-01"])
async def test_services_of_the_file_get_certificates(tmp_path: Path, challenge: str) -> None:
    # Half of all nonces are refused.
    options = {"env": {"PEBBLE_WFE_NONCEREJECT": "50"}}
    async with secured(
        tmp_path, ["chat", "code"], pebble_options=options, challenges=[challenge]
    ) as (gateway, pebble, _):
        trust = await pebble.root()
        assert names(await served(gateway, "chat.gw.test", trust)) == ["chat.gw.test"]
        assert names(await served(gateway, "code.gw.test", trust)) == ["code.gw.test"]
        metrics = await gateway.metrics()
        end = metrics.total("gatewayd_certificate_expiry_timestamp_seconds", domain="chat.gw.test")
        assert 89 < (end - time.time()) / 86400 < 91
        folder = tmp_path / "state/certificates"
        assert sorted(p.name for p in folder.iterdir()) == [
            *("accounts", "chat.gw.test.pem", "code.gw.test.pem"),
        ]
        for path in (*folder.glob("*.pem"), *folder.glob("accounts/*")):
            assert path.stat().st_mode & 0o777 == 0o600, path
        assert "PRIVATE KEY" not in gateway.read_log()
