"""Certificates that certbot keeps: its real folder, renewed by it while traffic runs."""

from __future__ import annotations

import asyncio
import os
import ssl
from pathlib import Path

import aiohttp
from free_ports import free_range
from pebble import Pebble
from waiting import until
from whole_gateway import Gateway
from whole_replicas import Replica

HOST, OTHER = "chat.gw.test", "code.gw.test"


class Certbot:
    """As an operator calls it, with a port of its own for the authority."""

    def __init__(self, home: Path, pebble: Pebble, http_port: int) -> None:
        self.live = home / "letsencrypt/live"
        self._env = {**os.environ, "REQUESTS_CA_BUNDLE": str(pebble.ca_file)}
        self._argv = (
            *("certbot", "--non-interactive", "--config-dir", str(home / "letsencrypt")),
            *("--work-dir", str(home / "work"), "--logs-dir", str(home / "logs")),
        )
        self._server = (
            *("--server", pebble.directory, "--agree-tos", "--register-unsafely-without-email"),
            *("--standalone", "--http-01-port", str(http_port)),
        )

    async def issue(self, name: str) -> None:
        await self._run("certonly", *self._server, "-d", name)

    async def renew(self) -> None:
        await self._run("renew", "--force-renewal", "--no-random-sleep-on-renew")

    async def delete(self, name: str) -> None:
        await self._run("delete", "--cert-name", name)

    async def _run(self, *argv: str) -> None:
        process = await asyncio.create_subprocess_exec(
            *self._argv,
            *argv,
            env=self._env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(90):
            output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()


async def shown(gateway: Gateway, host: str, trust: ssl.SSLContext) -> int:
    """The serial number of what a new client gets, after a request went through; 0 if refused."""
    try:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", gateway.tls_port, ssl=trust, server_hostname=host
        )
    except ssl.SSLError as error:
        if error.reason != "TLSV1_UNRECOGNIZED_NAME":
            raise
        return 0
    writer.write(f"GET /who HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 200"), answer
    serial = int(writer.get_extra_info("peercert")["serialNumber"], 16)
    writer.close()
    return serial


async def test_what_certbot_renews_is_served_while_traffic_runs(tmp_path: Path) -> None:
    (http_port,) = free_range(1)
    replica = Replica("chat", tmp_path / "chat.sock", gap_s=0.02)
    # Pebble refuses one nonce in twenty; two in a row are too much for certbot, and not our matter.
    kind = {"PEBBLE_WFE_NONCEREJECT": "0"}
    async with Pebble(tmp_path, http_port, env=kind) as pebble:
        certbot = Certbot(tmp_path, pebble, http_port)
        await certbot.issue(HOST)
        trust = await pebble.root()
        services = [
            {"name": name, "model": name, "replicas": [f"unix:{replica.path}"]}
            for name in ("chat", "code")
        ]
        gateway = Gateway(
            tmp_path,
            services,
            domain="gw.test",
            certificate={"type": "letsencrypt-live", "dir": str(certbot.live)},
            listen={
                "http": "127.0.0.1:0",
                "https": "127.0.0.1:0",
                "admin": f"unix:{tmp_path}/admin.sock",
            },
        )
        async with replica, gateway:
            await check(gateway, certbot, trust)


async def check(gateway: Gateway, certbot: Certbot, trust: ssl.SSLContext) -> None:
    first = await shown(gateway, HOST, trust)
    assert first
    assert not await shown(gateway, OTHER, trust)
    assert "PRIVATE KEY" not in gateway.read_log()
    stop = asyncio.Event()
    serials = {first}

    async def come_and_go() -> None:
        while not stop.is_set():
            serial = await shown(gateway, HOST, trust)
            assert serial, "a handshake was refused"
            serials.add(serial)

    async def stay() -> int:
        """One stream, over the whole renewal."""
        words = [{"role": "user", "content": "hello"}]
        body = {"model": "chat", "messages": words, "max_tokens": 300, "stream": True}
        url = f"https://127.0.0.1:{gateway.tls_port}/v1/chat/completions"
        connector = aiohttp.TCPConnector(ssl=trust)
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.post(url, json=body, headers={"Host": HOST}, server_hostname=HOST) as answer,
        ):
            return (await answer.read()).count(b"token ")

    async with asyncio.timeout(120), asyncio.TaskGroup() as group:
        stream = group.create_task(stay())
        clients = [group.create_task(come_and_go()) for _ in range(3)]
        await certbot.renew()
        await until(lambda: len(serials) == 2, "the new one is served")
        await certbot.issue(OTHER)
        await until(lambda: shown(gateway, OTHER, trust), "a new folder is served")
        stop.set()
        await asyncio.wait(clients)
    assert stream.result() == 300
    # Whichever worker it is: the newest.
    assert {await shown(gateway, HOST, trust) for _ in range(20)} == serials - {first}

    async def refused() -> bool:
        return not await shown(gateway, OTHER, trust)

    gateway.allow("no certificate is for")
    await certbot.delete(OTHER)
    await until(refused, "what was deleted is served no more")
    assert await shown(gateway, HOST, trust)
