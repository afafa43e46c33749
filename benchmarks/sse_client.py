"""Many event streams at once: counts events, checks their order, takes their times.

Owns: opening the streams and the numbers of a window. Does not own: when a window is (the caller
says `measure SECONDS` on standard input and gets one JSON line), CPU of the proxies.

Any lost, repeated or reordered event, any stream that ends and any answer but 200 is an error.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from array import array
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import uvloop

from benchmarks.client_protocol import Request, Response, fail, tell

T = TypeVar("T")
_END = b"}\n\n"
_OPENING = 100  # connections being opened at once


class Window:
    """What all streams have seen since it was made."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.events = 0
        self.delays_ns = array("q")

    def summary(self) -> dict[str, float]:
        seconds = time.monotonic() - self.start
        ordered = sorted(self.delays_ns)
        if not ordered:
            return {"events": 0, "seconds": seconds}
        return {
            "events": self.events,
            "seconds": seconds,
            "p50_ms": ordered[len(ordered) // 2] / 1e6,
            "p99_ms": ordered[len(ordered) * 99 // 100] / 1e6,
        }


class Stream(Response):
    window: Window | None = None  # of all streams; none while nothing is measured

    def __init__(
        self, request: bytes, wrong: Callable[[str], None], first: Callable[[], None]
    ) -> None:
        super().__init__(request, wrong)
        self._first = first
        self._next = 0
        self._tail = b""

    def on_body(self, body: bytes) -> None:
        now = time.monotonic_ns()
        data = self._tail + body
        window = Stream.window
        start = 0
        while (end := data.find(_END, start)) >= 0:
            # ...,"n":0000000007,"t":0000000000000000000}
            number = int(data[end - 34 : end - 24])
            if number != self._next:
                self._wrong(f"event {number} came instead of {self._next}")
                return
            if number == 0:
                self._first()
            self._next += 1
            if window is not None:
                window.events += 1
                window.delays_ns.append(now - int(data[end - 19 : end]))
            start = end + len(_END)
        self._tail = data[start:]

    def on_message_complete(self) -> None:
        self._wrong("the stream ended")


async def run(request: Request, streams: int) -> None:
    loop = asyncio.get_running_loop()
    trouble: asyncio.Future[str] = loop.create_future()

    def wrong(why: str) -> None:
        if not trouble.done():
            trouble.set_result(why)

    data = request.encode()
    opened: list[Stream] = []
    for begin in range(0, streams, _OPENING):
        batch = min(_OPENING, streams - begin)
        first = asyncio.Semaphore(0)
        for _ in range(batch):
            stream = Stream(data, wrong, first.release)
            opened.append(stream)
            await request.open(stream)
        for _ in range(batch):
            await _or_trouble(first.acquire(), trouble, 30.0)
    tell(ready=len(opened))

    lines: asyncio.Queue[str] = asyncio.Queue()
    loop.add_reader(sys.stdin, lambda: lines.put_nowait(sys.stdin.readline()))
    while line := await _or_trouble(lines.get(), trouble, None):
        _, seconds = line.split()
        window = Stream.window = Window()
        await _or_trouble(asyncio.sleep(float(seconds)), trouble, None)
        Stream.window = None
        tell(**window.summary())


async def _or_trouble(
    waited: Awaitable[T], trouble: asyncio.Future[str], timeout: float | None
) -> T:
    """The result of `waited`; the first trouble of any stream ends the client instead."""
    task = asyncio.ensure_future(waited)
    both: set[asyncio.Future[Any]] = {task, trouble}
    await asyncio.wait(both, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    if trouble.done():
        fail(trouble.result())
    if not task.done():
        fail("no first event in time")
    return task.result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=200)
    args = parser.parse_args()
    uvloop.run(run(Request.read(), args.streams))


if __name__ == "__main__":
    main()
