"""A real ACME authority for tests: pebble, with its challenge server for DNS.

    async with Pebble(home, http_port, tls_port) as pebble:
        ... pebble.directory, pebble.ca_file, await pebble.root() ...

Every name leads to 127.0.0.1 unless `resolve` says otherwise.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
from certificates import make_authority, write_pair
from free_ports import free_range
from waiting import accepts, until

HOOK = """#!/usr/bin/env python3
import json, sys, urllib.request
action, domain, name, value = sys.argv[1:]
path, body = ("set-txt", {{"value": value}}) if action == "add" else ("clear-txt", {{}})
data = json.dumps({{"host": name + ".", **body}}).encode()
urllib.request.urlopen("http://127.0.0.1:{port}/" + path, data=data, timeout=5)
"""


class Pebble:
    def __init__(
        self,
        home: Path,
        http_port: int = 1,
        tls_port: int = 1,
        *,
        valid_s: int = 90 * 86400,
        env: Mapping[str, str] | None = None,
        **config: Any,
    ) -> None:
        self.home = home
        self.port, self.admin_port, self.dns_port, self.dns_admin_port = free_range(4)
        self.authority = make_authority()
        self.ca_file = self.authority.write(home)
        cert, key = write_pair(self.authority.pair("localhost"), home, "pebble")
        self._config = {
            "listenAddress": f"127.0.0.1:{self.port}",
            "managementListenAddress": f"127.0.0.1:{self.admin_port}",
            "certificate": str(cert),
            "privateKey": str(key),
            "httpPort": http_port,
            "tlsPort": tls_port,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": False,
            "certificateValidityPeriod": valid_s,
            **config,
        }
        # Even so it reuses one authorization in a hundred of the same account and name.
        self._env = {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_AUTHZREUSE": "0", **(env or {})}
        self._processes: list[asyncio.subprocess.Process] = []

    @property
    def directory(self) -> str:
        return f"https://localhost:{self.port}/dir"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        path = self.home / "pebble.json"
        path.write_text(json.dumps({"pebble": self._config}))
        dns = f"127.0.0.1:{self.dns_port}"
        await self._spawn(
            *("pebble-challtestsrv", "-dns01", dns, "-management"),
            *(f"127.0.0.1:{self.dns_admin_port}", "-defaultIPv6", ""),
            *("-http01", "", "-https01", "", "-tlsalpn01", ""),
        )
        await self._spawn("pebble", "-config", str(path), "-dnsserver", dns, "-strict", "false")
        for port in (self.port, self.admin_port, self.dns_admin_port):
            await until(lambda port=port: accepts(port), f"port {port} is listened on")

    async def _spawn(self, *argv: str) -> None:
        with (self.home / f"{argv[0]}.log").open("ab") as log:
            self._processes.append(
                await asyncio.create_subprocess_exec(
                    *argv,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, **self._env},
                )
            )

    async def stop(self) -> None:
        for process in self._processes:
            if process.returncode is None:
                process.kill()
            await process.wait()
        self._processes.clear()

    async def root(self) -> ssl.SSLContext:
        """Trusts what it issues. Of each start another root."""
        pem = await self.management("GET", "roots/0")
        return ssl.create_default_context(cadata=pem)

    async def management(self, method: str, path: str) -> str:
        return await self._management(self.admin_port, method, path, https=True)

    async def resolve(self, host: str, address: str) -> None:
        """In place of what was said before."""
        body = {"host": f"{host}.", "addresses": [address]}
        for path in ("clear-a", "add-a"):
            await self._management(self.dns_admin_port, "POST", path, body)

    def hook(self) -> Path:
        """For dns-01."""
        path = self.home / "dns-hook"
        path.write_text(HOOK.format(port=self.dns_admin_port))
        path.chmod(0o755)
        return path

    async def _management(
        self, port: int, method: str, path: str, body: object = None, *, https: bool = False
    ) -> str:
        url = f"http{'s' if https else ''}://localhost:{port}/{path}"
        context = self.authority.client() if https else True
        async with (
            aiohttp.ClientSession() as http,
            http.request(method, url, json=body, ssl=context) as response,
        ):
            assert response.status == 200, await response.text()
            return await response.text()
