"""Large uploads through real processes: a fast client in front of a replica that is slow."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
from pathlib import Path

import pytest
from whole_gateway import Gateway, processes_of

MIB = 1 << 20
PIECE = os.urandom(MIB)
PIECES = 64
GROWTH_KIB = 4096


async def read_slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers a request with the digest of its body."""
    head = await reader.readuntil(b"\r\n\r\n")
    is_chunked = b"chunked" in head
    found = hashlib.sha256()
    left = 0 if is_chunked else PIECES * MIB
    while left or is_chunked:
        if not left:
            left = int(await reader.readuntil(b"\r\n"), 16)
            is_chunked = left > 0
        data = await reader.readexactly(min(left, MIB // 4))
        found.update(data)
        left -= len(data)
        await asyncio.sleep(0.001)  # the client could send ten times as much
        if not left and b"chunked" in head:
            await reader.readexactly(2)
    body = found.hexdigest().encode()
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    writer.close()


def upload(port: int, framing: str) -> bytes:
    """Sends it as fast as it is taken; the last bytes of the answer."""
    fields = "Transfer-Encoding: chunked" if framing == "chunked" else None
    fields = fields or f"Content-Length: {PIECES * MIB}"
    head = f"POST /x HTTP/1.1\r\nHost: llama.test\r\nConnection: close\r\n{fields}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(head.encode())
        for _ in range(PIECES):
            client.sendall(b"%x\r\n%b\r\n" % (MIB, PIECE) if framing == "chunked" else PIECE)
        if framing == "chunked":
            client.sendall(b"0\r\n\r\n")
        answer = b""
        while data := client.recv(MIB):
            answer += data
    return answer[-64:]


def memory_kib(pid: int, field: str) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0])


def count_peak_anew(pid: int) -> None:
    """Of its memory, VmHWM (proc(5))."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


@pytest.mark.parametrize("framing", ["counted", "chunked"])
async def test_no_process_grows(home: Path, framing: str) -> None:
    socket_path = home / "slow.sock"
    replica = await asyncio.start_unix_server(read_slowly, socket_path)
    service = {
        "name": "llama",
        "client_max_body_size": PIECES * MIB,
        "replicas": [{"id": "r0", "socket": str(socket_path)}],
    }
    async with replica, Gateway(home, [service]) as gateway:
        pids = [*processes_of(gateway.tmp)]
        before = {pid: memory_kib(pid, "VmRSS") for pid in pids}
        for pid in pids:
            count_peak_anew(pid)
        answer = await asyncio.to_thread(upload, gateway.port, framing)
        assert answer.decode() == hashlib.sha256(PIECE * PIECES).hexdigest()
        grown = {pid: memory_kib(pid, "VmHWM") - before[pid] for pid in pids}
        assert max(grown.values()) < GROWTH_KIB, grown
