"""Time from the last byte of a request to the first byte of the answer's body, one at a time.

Owns: the clock around it. Does not own: load beside it (there is none).
The caller says `measure COUNT` on standard input.
"""

from __future__ import annotations

import sys
import time

import httptools

from benchmarks.client_protocol import Request, fail, tell


class Answer:
    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.first_ns = 0
        self.complete = False

    def on_body(self, body: bytes) -> None:
        self.first_ns = self.first_ns or time.monotonic_ns()

    def on_message_complete(self) -> None:
        self.complete = True


def main() -> None:
    request = Request.read()
    data = request.encode()
    plain = request.connect()
    tell(ready=True)
    for line in iter(sys.stdin.readline, ""):
        took: list[int] = []
        for _ in range(int(line.split()[1])):
            answer = Answer()
            start = time.monotonic_ns()
            plain.sendall(data)
            while not answer.complete:
                received = plain.recv(65536)
                if not received:
                    fail("connection closed in an answer")
                answer.parser.feed_data(received)
            if answer.parser.get_status_code() != 200 or not answer.first_ns:
                fail(f"status {answer.parser.get_status_code()}")
            took.append(answer.first_ns - start)
        took.sort()
        tell(p50_ms=took[len(took) // 2] / 1e6, p99_ms=took[len(took) * 99 // 100] / 1e6)


if __name__ == "__main__":
    main()
