"""HTTPS as its clients see it: openssl, curl, the `openai` package, `websockets`."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
import pytest_asyncio
import websockets
from certificates import Authority, make_authority, write_pair
from waiting import until
from whole_gateway import Gateway, gatewayd, processes_of
from whole_replicas import Replica

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOST = "chat.gw.test"
NAMES = ("*.gw.test", "localhost")
WORDS: Any = [{"role": "user", "content": "hello"}]


@dataclass
class Secure:
    gateway: Gateway
    replica: Replica
    authority: Authority
    served: set[int] = field(default_factory=set)  # serial numbers of what clients were shown

    @property
    def folder(self) -> Path:
        return self.gateway.home

    def renew(self) -> None:
        write_pair(self.authority.pair(*NAMES), self.folder, "gw")

    async def get(self, path: str = "/who") -> tuple[int, str]:
        """Over a connection of its own."""
        reader, writer = await asyncio.open_connection(
            "127.0.0.1",
            self.gateway.tls_port,
            ssl=self.authority.client(),
            server_hostname=HOST,
        )
        self.served.add(int(writer.get_extra_info("peercert")["serialNumber"], 16))
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
        answer = (await reader.read()).decode()
        writer.close()
        head, _, body = answer.partition("\r\n\r\n")
        return int(head.split()[1]), body


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def secure(shared_home: Path) -> AsyncIterator[Secure]:
    authority = make_authority()
    authority.write(shared_home)
    replica = Replica("chat", shared_home / "chat.sock")
    cert, key = write_pair(authority.pair(*NAMES), shared_home, "gw")
    gateway = Gateway(
        shared_home,
        [
            {
                "name": "chat",
                "domain": [HOST, "localhost"],
                "model": "m",
                "hsts": "1h",
                "replicas": [f"unix:{replica.path}"],
            }
        ],
        domain="gw.test",
        certificate={"type": "file", "cert": str(cert), "key": str(key)},
        listen={
            "http": "127.0.0.1:0",
            "https": "127.0.0.1:0",
            "admin": f"unix:{shared_home}/admin.sock",
        },
    )
    async with replica, gateway:
        yield Secure(gateway, replica, authority)


async def run(*argv: str, said: bytes = b"") -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(30):
        output, _ = await process.communicate(said)
    assert process.returncode is not None
    return process.returncode, output.decode(errors="replace")


async def s_client(secure: Secure, *options: str, said: bytes = b"") -> tuple[int, str]:
    return await run(
        *("openssl", "s_client", "-connect", f"127.0.0.1:{secure.gateway.tls_port}"),
        *("-CAfile", str(secure.folder / "authority.pem"), *options),
        said=said,
    )


# --- openssl


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("-servername chat.gw.test", ["New, TLSv1.3", "Verify return code: 0 (ok)"]),
        ("-servername CHAT.GW.TEST", ["Verify return code: 0 (ok)", "CN = *.gw.test"]),
        ("-servername chat.gw.test -tls1_3 -ciphersuites TLS_CHACHA20_POLY1305_SHA256",
         ["TLS_CHACHA20_POLY1305_SHA256"]),
        ("-servername chat.gw.test -tls1_2", ["TLSv1.2", "ECDHE-ECDSA-AES", "Verify return code: 0",
                                              "Compression: NONE", "Secure Renegotiation IS supp"]),
        ("-servername chat.gw.test -tls1_2 -cipher ECDHE-ECDSA-CHACHA20-POLY1305",
         ["ECDHE-ECDSA-CHACHA20-POLY1305"]),
        ("-servername chat.gw.test -tls1_2 -cipher ECDHE-ECDSA-CHACHA20-POLY1305:"
         "ECDHE-ECDSA-AES128-GCM-SHA256", ["Cipher is ECDHE-ECDSA-CHACHA20-POLY1305"]),
        ("-servername chat.gw.test -groups P-256", ["Server Temp Key: ECDH, prime256v1"]),
        ("-servername chat.gw.test -groups ffdhe8192:X448:P-384",
         ["Server Temp Key: ECDH, secp384r1"]),
        ("-servername chat.gw.test -groups P-521:X25519", ["Server Temp Key: X25519"]),
        ("-servername chat.gw.test -alpn h2,http/1.1", ["ALPN protocol: http/1.1"]),
        ("-servername chat.gw.test -alpn h2", ["No ALPN negotiated", "Verify return code: 0"]),
    ],
)  # fmt: skip
async def test_a_handshake(secure: Secure, options: str, expected: list[str]) -> None:
    code, output = await s_client(secure, *options.split())
    assert code == 0, output
    for text in expected:
        assert text in output


@pytest.mark.parametrize(
    ("options", "alert"),
    [
        ("-servername other.test", "unrecognized name"),
        ("-servername a.chat.gw.test", "unrecognized name"),
        ("-noservername", "unrecognized name"),
        ("-servername chat.gw.test -tls1_1 -cipher DEFAULT@SECLEVEL=0", "protocol version"),
        ("-servername chat.gw.test -tls1_2 -cipher AES256-SHA@SECLEVEL=0", "handshake failure"),
        ("-servername chat.gw.test -groups ffdhe8192", "handshake failure"),
        ("-servername chat.gw.test -groups P-521 -tls1_2", "handshake failure"),
        ("-servername chat.gw.test -tls1_2 -cipher ECDHE-ECDSA-AES128-SHA", "handshake failure"),
    ],
)
async def test_a_handshake_that_is_refused(secure: Secure, options: str, alert: str) -> None:
    code, output = await s_client(secure, *options.split())
    assert code != 0
    assert alert in output


async def test_a_client_cannot_renegotiate(secure: Secure) -> None:
    _, output = await s_client(secure, "-servername", HOST, "-tls1_2", said=b"R\n")
    assert "no renegotiation" in output or "RENEGOTIATING" in output
    assert "Verify return code: 0" in output
    assert (await secure.get())[0] == 200


async def test_sessions_are_resumed(secure: Secure) -> None:
    """By the worker that gave the ticket: of some connections one comes to it."""
    session = str(secure.folder / "session.pem")
    request = f"GET /who HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode()
    for version in ("-tls1_2", "-tls1_3"):
        options = ("-servername", HOST, version, "-ign_eof")
        await s_client(secure, *options, "-sess_out", session, said=request)
        for _ in range(30):
            _, output = await s_client(secure, *options, "-sess_in", session, said=request)
            if "Reused, TLS" in output:
                break
        else:
            raise AssertionError(f"never resumed: {version}")


# --- clients


async def curl(secure: Secure, url: str, *options: str) -> str:
    gateway = secure.gateway
    code, output = await run(
        *("curl", "-sS", "-D", "-", "--cacert", str(secure.folder / "authority.pem")),
        *("--resolve", f"{HOST}:{gateway.tls_port}:127.0.0.1"),
        *("--resolve", f"{HOST}:{gateway.port}:127.0.0.1", *options, url),
    )
    assert code == 0, output
    return output


async def test_curl_follows_the_redirect(secure: Secure) -> None:
    output = await curl(secure, f"http://{HOST}:{secure.gateway.port}/who", "-L")
    assert "301 Moved Permanently" in output
    assert f"Location: https://{HOST}:{secure.gateway.tls_port}/who" in output
    assert "Strict-Transport-Security: max-age=3600" in output
    assert output.endswith("chat")
    output = await curl(
        secure, f"http://{HOST}:{secure.gateway.port}/v1/chat/completions", "-L", "-d", "{}",
        "-H", "Content-Type: application/json",
    )  # fmt: skip
    assert "308 Permanent Redirect" in output
    assert secure.replica.requests[-1].method == "POST"
    # Plain requests without a port are sent to the usual one.
    output = await curl(
        secure, f"http://127.0.0.1:{secure.gateway.port}/who", "-H", f"Host: {HOST}"
    )
    assert f"Location: https://{HOST}/who" in output


async def test_curl_is_told_that_it_speaks_plain_http(secure: Secure) -> None:
    output = await curl(secure, f"http://{HOST}:{secure.gateway.tls_port}/who")
    assert output.startswith("HTTP/1.1 400 ")
    assert "speaks HTTPS" in output


async def test_the_openai_client(secure: Secure) -> None:
    secure.replica.stepped = True
    http = openai.DefaultAsyncHttpxClient(verify=secure.authority.client())
    url = f"https://localhost:{secure.gateway.tls_port}/v1"
    try:
        async with (
            asyncio.timeout(30),
            openai.AsyncOpenAI(base_url=url, api_key="none", http_client=http) as client,
        ):
            stream = await client.chat.completions.create(
                model="m", messages=WORDS, max_tokens=5, stream=True
            )
            for number in range(5):
                secure.replica.step()
                chunk = await anext(stream)
                assert chunk.choices[0].delta.content == f"token {number} "
            assert [chunk async for chunk in stream] == []
    finally:
        secure.replica.stepped = False
    assert secure.replica.inferences[-1].header("x-forwarded-proto") == ["https"]


async def test_a_client_that_leaves_ends_its_stream(secure: Secure) -> None:
    secure.replica.stepped = True
    try:
        connector = aiohttp.TCPConnector(ssl=secure.authority.client())
        async with aiohttp.ClientSession(connector=connector) as session:
            body = {"model": "m", "messages": WORDS, "max_tokens": 100, "stream": True}
            url = f"https://localhost:{secure.gateway.tls_port}/v1/chat/completions"
            async with session.post(url, json=body) as response:
                secure.replica.step()
                await response.content.readline()
        await until(lambda: secure.replica.inferences[-1].outcome == "client gone")
    finally:
        secure.replica.stepped = False


async def test_websockets(secure: Secure) -> None:
    async with websockets.connect(
        f"wss://{HOST}:{secure.gateway.tls_port}/echo",
        ssl=secure.authority.client(),
        host="127.0.0.1",
        server_hostname=HOST,
        max_size=None,
        proxy=None,
    ) as socket:
        for message in ("hello", b"\x00" * 300_000):
            await socket.send(message)
            assert await socket.recv() == message


# --- certificates that change


async def test_certificates_change_under_load(secure: Secure) -> None:
    """A renewal every half second: no handshake and no stream is lost, all workers follow."""
    stop = asyncio.Event()
    answered = 0

    async def come_and_go() -> None:
        nonlocal answered
        while not stop.is_set():
            assert await secure.get() == (200, "chat")
            answered += 1

    async def stay() -> int:
        connector = aiohttp.TCPConnector(ssl=secure.authority.client())
        body = {"model": "m", "messages": WORDS, "max_tokens": 150, "stream": True}
        url = f"https://localhost:{secure.gateway.tls_port}/v1/chat/completions"
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.post(url, json=body) as response,
        ):
            return (await response.read()).count(b"token ")

    secure.replica.gap_s = 0.02
    secure.served.clear()
    try:
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            streams = [group.create_task(stay()) for _ in range(10)]
            for _ in range(4):
                group.create_task(come_and_go())
            for _ in range(3):
                seen = set(secure.served)
                secure.renew()
                await until(lambda seen=seen: secure.served - seen)  # type: ignore[misc]
            stop.set()
    finally:
        secure.replica.gap_s = 0.0
    assert [stream.result() for stream in streams] == [150] * 10
    assert answered > 20
    # Whichever worker: the newest.
    secure.served.clear()
    await until(lambda: _all_new(secure))
    for _ in range(20):
        await secure.get()
    assert len(secure.served) == 1


def _shown(pid: int) -> list[Path]:
    return [Path(f"/proc/{pid}/{name}") for name in ("cmdline", "environ")]


async def _all_new(secure: Secure) -> bool:
    secure.served.clear()
    for _ in range(12):
        await secure.get()
    return len(secure.served) == 1


async def test_a_broken_pair_keeps_the_old_one_and_says_so(secure: Secure) -> None:
    gateway = secure.gateway
    gateway.allow("does not belong to the certificate")
    before = (secure.folder / "gw.key").read_bytes()
    (secure.folder / "gw.key").write_bytes(secure.authority.pair("x.test").key)

    async def told() -> bool:
        (certificate,) = (await gateway.status())["certificates"]
        return "does not belong" in (certificate["fault"] or "")

    await until(told)
    assert (await secure.get())[0] == 200
    code, output, _ = await gatewayd("status", "--admin", f"unix:{gateway.admin_path}")
    assert code == 0
    assert "CERTIFICATE FOR" in output
    assert "the private key does not belong to the certificate" in output
    code, _, errors = await gatewayd("check", "-c", str(gateway.file))
    assert code == 2
    assert "certificate.key: " in errors
    (secure.folder / "gw.key").write_bytes(before)
    await until(lambda: _all_new(secure))


async def test_a_worker_that_was_replaced_has_them(secure: Secure) -> None:
    gateway = secure.gateway
    gateway.allow("was killed by SIGKILL")
    for worker in (await gateway.status())["workers"]:
        os.kill(worker["pid"], signal.SIGKILL)

    async def back() -> bool:
        status = await gateway.status()
        return bool(status["ready"]) and all(w["restarts"] for w in status["workers"])

    await until(back)
    for _ in range(8):
        assert (await secure.get())[0] == 200


async def test_failures_are_counted(secure: Secure) -> None:
    with pytest.raises(ssl.SSLError):
        await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", secure.gateway.tls_port))

    async def counted() -> bool:
        metrics = await secure.gateway.metrics()
        return metrics.total("gatewayd_rejections_total", reason="tls_unknown_name") > 0

    await until(counted)
    metrics = await secure.gateway.metrics()
    (end,) = metrics.matching("gatewayd_certificate_expiry_timestamp_seconds", domain="*.gw.test")
    assert end > 1.7e9


async def test_keys_are_nowhere_but_where_they_were(secure: Secure) -> None:
    secret = (secure.folder / "gw.key").read_bytes().splitlines()[1]
    processes = processes_of(secure.gateway.tmp)
    assert len(processes) >= 3
    for shown in [path for pid in processes for path in _shown(pid)]:
        assert secret not in shown.read_bytes()
    files = [path for path in secure.folder.rglob("*") if path.is_file()]
    holding = {path.name for path in files if secret in path.read_bytes()}
    assert holding == {"gw.key"}
