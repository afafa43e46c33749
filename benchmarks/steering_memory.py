"""What a held stream costs each process when a router decides and the bytes go straight.

Owns: growth of resident memory per open stream, by role, in mode `steer` and beside it `through`;
the bounds of router and bridge. Does not own: how streams are opened (sse_client).

    python benchmarks/steering_memory.py [--streams 1000] [--prompt 1000]

Exit status: 0 when both bounds hold, 1 when one does not.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # `python benchmarks/steering_memory.py` puts only this folder there

from benchmarks.bench import Bench, Settings, Shape  # noqa: E402
from benchmarks.gateway_proxy import GatewayProxy  # noqa: E402
from benchmarks.load import chat, client  # noqa: E402
from benchmarks.processes import memory_kib  # noqa: E402
from benchmarks.run import gatewayd_command  # noqa: E402

_PATH = "/v1/chat/completions"
_WARM_UP = 20
_BOUNDS_KIB = {"router": 30.0, "bridge": 10.0}
_RATE = 2.0  # events per second and stream
_SETTLE_S = 1.0


def body(prompt: int) -> bytes:
    """A streamed chat that never ends, with so many characters of prompt."""
    message = {"role": "user", "content": ("so many words " * (prompt // 14 + 1))[:prompt]}
    return json.dumps(
        {**json.loads(chat(stream=True, max_tokens=10**9)), "messages": [message]}
    ).encode()


def memory(proxy: GatewayProxy) -> dict[str, int]:
    return {role: sum(map(memory_kib, pids)) for role, pids in proxy.roles().items()}


def measure(bench: Bench, mode: str, streams: int, prompt: int) -> dict[str, float]:
    """KiB per stream by role, on a gateway of its own."""
    with bench.replica(rate=_RATE) as replica:
        shape = Shape((replica,), router=mode, pinned=False)
        proxy = GatewayProxy(bench, mode, shape, bench.scratch(mode))
        with bench.running(proxy):
            with client(
                bench, "sse_client", proxy, _PATH, "--streams", str(_WARM_UP), body=body(prompt)
            ):
                pass
            time.sleep(_SETTLE_S)
            before = memory(proxy)
            past = proxy.fallbacks()
            with client(
                bench, "sse_client", proxy, _PATH, "--streams", str(streams), body=body(prompt)
            ) as held:
                held.say("measure 1.5")
                held.hear(30.0)
                grown = memory(proxy)
                held.require_alive()
            if proxy.fallbacks() != past:
                raise SystemExit("some streams went past the router")
    return {role: (grown[role] - before[role]) / streams for role in sorted(before)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--prompt", type=int, default=1000, help="characters of each prompt")
    parser.add_argument("--modes", default="steer,through")
    args = parser.parse_args()
    cores = os.sched_getaffinity(0)
    settings = Settings(
        rounds=1, seconds=1, streams=args.streams, open_streams=args.streams, idle_connections=0,
        connections=1, proxy_core=max(cores), load_core=min(cores), subject="gatewayd",
        gatewayd=gatewayd_command(""), nginx="", wrk="",
    )  # fmt: skip
    good = True
    with Bench(settings) as bench:
        for mode in args.modes.split(","):
            per_stream = measure(bench, mode, args.streams, args.prompt)
            for role, kib in per_stream.items():
                bound = _BOUNDS_KIB.get(role) if mode == "steer" else None
                verdict = (
                    ""
                    if bound is None
                    else f"  bound {bound:g}: {'holds' if kib <= bound else 'BROKEN'}"
                )
                good = good and (bound is None or kib <= bound)
                print(f"{mode:8} {role:8} {kib:7.2f} KiB a stream{verdict}", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
