"""Idle connections: each has had one answer and is kept open.

Owns: opening and holding them until standard input ends. Does not own: the memory they cost.
"""

from __future__ import annotations

import argparse
import asyncio
import sys

import uvloop

from benchmarks.client_protocol import Request, Response, fail, tell


async def run(request: Request, connections: int) -> None:
    loop = asyncio.get_running_loop()
    trouble: list[str] = []
    data = request.encode()
    held: list[Response] = []
    for _ in range(connections):
        response = Response(data, trouble.append)
        held.append(response)
        await request.open(response)
    for _ in range(3000):
        if trouble or all(response.complete for response in held):
            break
        await asyncio.sleep(0.01)
    if trouble or not all(response.complete for response in held):
        fail(trouble[0] if trouble else "not every connection was answered")
    tell(ready=len(held))

    lines: asyncio.Queue[str] = asyncio.Queue()
    loop.add_reader(sys.stdin, lambda: lines.put_nowait(sys.stdin.readline()))
    while await lines.get():
        if trouble:
            fail(trouble[0])
        tell(held=len(held))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--connections", type=int, default=2000)
    args = parser.parse_args()
    uvloop.run(run(Request.read(), args.connections))


if __name__ == "__main__":
    main()
