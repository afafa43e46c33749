"""An edge in a process of its own that may have few descriptors: `starved_edge.py DIR LIMIT`.

Serves `chat.example` from DIR/a.sock and prints its port; runs until its standard input ends.
"""

from __future__ import annotations

import asyncio
import resource
import sys
from pathlib import Path

import uvloop

sys.path += [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

from harness import Gateway

from gatewayd.core.model import Replica, Service, UnixAddress


async def main(directory: str, limit: int) -> None:
    gateway = Gateway(Path(directory))
    gateway.loop.set_exception_handler(None)
    await gateway.start()
    replicas = (Replica("a", UnixAddress(f"{directory}/a.sock")),)
    gateway.services["chat"] = Service("main", "chat", ("chat.example",), replicas=replicas)
    gateway.publish()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    print(gateway.port, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2])))
