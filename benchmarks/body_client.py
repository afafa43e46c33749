"""Large bodies, one after the other on one connection, down or up.

Owns: moving `--size` bytes per transfer and checking that all arrived. Does not own: the cost.
The caller says `measure SECONDS` on standard input; whole transfers are counted.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import httptools

from benchmarks.client_protocol import Request, fail, tell

_PIECE = 1024 * 1024


class Answer:
    """One response at a time on a blocking connection."""

    def __init__(self, request: Request) -> None:
        self._socket = request.connect()
        self._buffer = memoryview(bytearray(_PIECE))
        self._renew()

    def _renew(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._bytes = 0
        self._text = b""
        self._complete = False

    def on_body(self, body: bytes) -> None:
        self._bytes += len(body)
        self._text = body if len(body) < 1000 else b""

    def on_message_complete(self) -> None:
        self._complete = True

    def send(self, data: bytes | memoryview) -> None:
        self._socket.sendall(data)

    def receive(self) -> tuple[int, bytes]:
        """Length of the body of the next response, and the end of it when short."""
        self._renew()
        while not self._complete:
            size = self._socket.recv_into(self._buffer)
            if not size:
                fail(f"closed after {self._bytes} bytes of a body")
            self._parser.feed_data(self._buffer[:size])
        if self._parser.get_status_code() != 200:
            fail(f"status {self._parser.get_status_code()}")
        return self._bytes, self._text


def transfer(answer: Answer, head: bytes, size: int, up: bool) -> None:
    answer.send(head)
    if up:
        piece = memoryview(bytes(_PIECE))
        for begin in range(0, size, _PIECE):
            answer.send(piece[: min(_PIECE, size - begin)])
    received, text = answer.receive()
    if up:
        received = int(json.loads(text)["received"])
    if received != size:
        fail(f"{received} bytes arrived of {size}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--up", action="store_true")
    args = parser.parse_args()
    request = Request.read()
    head = request.encode(args.size if args.up else 0)
    if args.up:
        head = head.replace(b"GET ", b"POST ", 1)
    answer = Answer(request)
    tell(ready=True)
    for line in iter(sys.stdin.readline, ""):
        start, done = time.monotonic(), 0
        while time.monotonic() - start < float(line.split()[1]):
            transfer(answer, head, args.size, args.up)
            done += 1
        tell(transfers=done, seconds=time.monotonic() - start)


if __name__ == "__main__":
    main()
