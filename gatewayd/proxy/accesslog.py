"""Access lines: built on the path of a request, written in batches by a thread.

Owns: the line's format, batching, reopening. Does not own: what happened (exchange).

A line costs an f-string; `logging` would cost 8 µs. A thread writes, because a reader of our
standard output that stops reading must stop nobody's request: lines are dropped and counted then.
"""

from __future__ import annotations

import json
import logging
import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from gatewayd.core.model import Log
from gatewayd.proxy.exchange import Exchange

_log = logging.getLogger(__name__)

_FLUSH_S: Final = 0.15
_MAX_LINES: Final = 50_000  # waiting for a reader that does not read
_MILLISECONDS: Final = tuple(f".{ms:03d}Z" for ms in range(1000))
_BELOW_A_SECOND: Final = tuple(f"0.{ms:03d}" for ms in range(1000))
_PIPE_CHUNK: Final = 4096  # PIPE_BUF: what several workers write to one pipe whole


class Unread:
    """Stands in a line for the exchange that a request which could not be read never became."""

    service_name = method = target = via = closed_by = "-"
    replica = token_name = ""
    bytes_in = 0
    first_byte_at = 0.0
    known = None

    def __init__(
        self, *, client: str, request_id: bytes, status: int, bytes_out: int, now: float
    ) -> None:
        self.client = client
        self.request_id = request_id
        self.status = status
        self.bytes_out = bytes_out
        self.started_at = self.ended_at = now


class AccessLog:
    """`write` for finished exchanges; a no-op when the log is off."""

    def __init__(self, log: Log) -> None:
        # Each counted by one thread only.
        self._refused = 0
        self._unwritten = 0
        self._lines: list[str] = []
        self._path = log.access
        self._format: Callable[[Exchange | Unread, str], str] = (
            _json_line if log.format == "json" else _text_line
        )
        self._second = 0
        self._until_second = ""
        self._reopen = False
        self._closing = threading.Event()
        self._news = threading.Event()  # a first line of a batch, or something else to do
        self._thread: threading.Thread | None = None
        if log.access != "off":
            self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
            self._thread.start()

    def write(self, ended: Sequence[Exchange | Unread]) -> None:
        """A line for each."""
        if self._thread is None:
            return
        room = _MAX_LINES - len(self._lines)
        if len(ended) > room:
            self._refused += len(ended) - room
            ended = ended[:room]
        stamp = self._stamp()
        line = self._format
        lines = [line(exchange, stamp) for exchange in ended]
        # Looked up when they are made: the thread may take the list away meanwhile.
        self._lines.extend(lines)
        if len(self._lines) <= len(lines):
            self._news.set()

    def _stamp(self) -> str:
        second, ms = divmod(int(time.time() * 1000), 1000)
        if second != self._second:
            self._second = second
            self._until_second = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return self._until_second + _MILLISECONDS[ms]

    @property
    def dropped(self) -> int:
        """Lines that were lost since the process began."""
        return self._refused + self._unwritten

    def reopen(self) -> None:
        """After the file was moved away (SIGUSR1)."""
        self._reopen = True
        self._news.set()

    def close(self) -> None:
        """Write what waits; gives up after a second when nobody reads."""
        self._closing.set()
        self._news.set()
        if self._thread is not None:
            self._thread.join(timeout=1.0)

    def _run(self) -> None:
        fd = self._open()
        while True:
            self._news.wait()  # an idle gateway wakes nobody
            self._news.clear()
            last = self._closing.wait(_FLUSH_S)
            if self._reopen:
                self._reopen = False
                if fd > 2:
                    os.close(fd)
                fd = self._open()
            if self._lines:
                lines, self._lines = self._lines, []
                self._put(fd, lines)
            if last:
                return

    def _open(self) -> int:
        if self._path == "stdout":
            return sys.stdout.fileno()
        try:
            return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as error:
            _log.error("cannot open the access log %s: %s", self._path, error)
            return -1

    def _put(self, fd: int, lines: list[str]) -> None:
        if fd < 0:
            self._unwritten += len(lines)
            return
        try:
            for block in _blocks(lines, whole=stat.S_ISREG(os.fstat(fd).st_mode)):
                rest = memoryview(block)
                while rest:
                    rest = rest[os.write(fd, rest) :]
        except OSError:
            self._unwritten += len(lines)  # a full disk or a closed pipe must not end the thread


def _blocks(lines: list[str], *, whole: bool) -> list[bytes]:
    """Line-aligned blocks that the kernel does not mix with those of other workers."""
    encoded = [line.encode("utf-8", "backslashreplace") for line in lines]
    if whole:
        return [b"".join(encoded)]
    blocks: list[bytes] = []
    block = b""
    for line in encoded:
        if block and len(block) + len(line) > _PIPE_CHUNK:
            blocks.append(block)
            block = b""
        block += line
    return [*blocks, block]


def _text_line(exchange: Exchange | Unread, stamp: str) -> str:
    started = exchange.started_at
    # Most answers take less than a second, and to format that would cost more than all the rest.
    took = int((exchange.ended_at - started) * 1000 + 0.5)
    first = "-"
    if exchange.first_byte_at:
        ms = int((exchange.first_byte_at - started) * 1000 + 0.5)
        first = _BELOW_A_SECOND[ms] if ms < 1000 else f"{ms / 1000:.3f}"
    known = exchange.known
    if known is None:
        line, end = _of_request(exchange), _end_of(exchange)
    else:
        if known.line_replica is not exchange.replica or known.line_via is not exchange.via:
            known.line, known.line_end = _of_request(exchange), _end_of(exchange)
            known.line_replica, known.line_via = exchange.replica, exchange.via
        line, end = known.line, known.line_end
    return (
        f"{stamp} {line} {exchange.status} {exchange.bytes_in} {exchange.bytes_out} {first} "
        f"{_BELOW_A_SECOND[took] if took < 1000 else f'{took / 1000:.3f}'} {exchange.closed_by} "
        f"{exchange.request_id.decode('latin-1')}{end}"
    )


def _of_request(exchange: Exchange | Unread) -> str:
    """What does not depend on how it ended."""
    path = exchange.target.partition("?")[0]
    if '"' in path:
        path = path.replace('"', "%22")
    return (
        f"{exchange.client or '-'} {exchange.service_name} {exchange.replica or '-'} "
        f'{exchange.via} "{exchange.method} {path}"'
    )


def _end_of(exchange: Exchange | Unread) -> str:
    return f" {exchange.token_name}\n" if exchange.token_name else "\n"


def _json_line(exchange: Exchange | Unread, stamp: str) -> str:
    started = exchange.started_at
    first = round(exchange.first_byte_at - started, 6) if exchange.first_byte_at else None
    record = {
        "time": stamp,
        "request_id": exchange.request_id.decode("latin-1"),
        "client": exchange.client,
        "service": exchange.service_name,
        "replica": exchange.replica,
        "via": exchange.via,
        "method": exchange.method,
        "path": exchange.target.partition("?")[0],
        "status": exchange.status,
        "bytes_in": exchange.bytes_in,
        "bytes_out": exchange.bytes_out,
        "seconds_to_first_byte": first,
        "seconds": round(exchange.ended_at - started, 6),
        "closed_by": exchange.closed_by,
    }
    if exchange.token_name:
        record["token"] = exchange.token_name
    return json.dumps(record) + "\n"
