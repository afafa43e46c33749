"""`make bench`: the figures of gatewayd against nginx, and the table of what was promised.

Owns: the command line, the order, the exit status. Does not own: any figure (figures/).

    python benchmarks/run.py [--only sse,get] [--rounds 5] [--seconds 4] [--quick]

Exit status: 0 when every bound holds, 1 when one does not or a figure failed, 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # `python benchmarks/run.py` puts only this folder there

from benchmarks.bench import Bench, Settings  # noqa: E402
from benchmarks.figures import ALL  # noqa: E402
from benchmarks.processes import SHIELD, BenchError  # noqa: E402
from benchmarks.report import (  # noqa: E402
    SUBJECT,
    Figure,
    Row,
    Samples,
    describe_machine,
    judge,
    save,
    table,
)

_TOOLS = {
    "nginx": "nginx",
    "wrk": "wrk",
    "taskset": "util-linux",
    "setpriv": "util-linux",
}  # and the packages they are in


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks/run.py", description="gatewayd against nginx in one run on one machine"
    )
    parser.add_argument("--only", default="", metavar="A,B", help="figures to measure; see --list")
    parser.add_argument("--list", action="store_true", help="print the figures and exit")
    parser.add_argument("--rounds", type=int, help="of each proxy, in turn (default 5)")
    parser.add_argument("--seconds", type=int, help="of one measurement (default 4)")
    parser.add_argument(
        "--quick", action="store_true", help="a look of two or three minutes, not saved"
    )
    parser.add_argument("--streams", type=int, default=200, help="of the event figures")
    parser.add_argument("--connections", type=int, default=64, help="of wrk")
    parser.add_argument("--cores", default="", metavar="P,L", help="core of proxies, core of load")
    parser.add_argument("--nice", type=int, default=0, help="be nice to others on the machine")
    parser.add_argument("--gatewayd", default="", metavar="COMMAND", help="how it is called")
    parser.add_argument(
        "--stand-in", action="store_true", help="nginx in gatewayd's place, to check the harness"
    )
    parser.add_argument("--save", action="store_true", help="save whatever was measured")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    return parser.parse_args()


def gatewayd_command(given: str) -> tuple[str, ...]:
    if given:
        return tuple(given.split())
    installed = Path(sys.executable).with_name("gatewayd")
    if installed.exists():
        return (str(installed),)
    return (sys.executable, "-c", "from gatewayd.cli import main; raise SystemExit(main())")


def settings_of(args: argparse.Namespace) -> Settings:
    quick = args.quick
    available = sorted(os.sched_getaffinity(0))
    cores = [int(core) for core in args.cores.split(",")] if args.cores else available[-2:][::-1]
    if len(cores) != 2 or cores[0] == cores[1] or not set(cores) <= set(available):
        raise BenchError(f"two different cores are needed of {available}")
    missing = [f"{t} (Debian: {p})" for t, p in _TOOLS.items() if not _which(t)]
    if missing:
        raise BenchError("not installed: " + ", ".join(missing))
    return Settings(
        rounds=args.rounds or (2 if quick else 5),
        seconds=args.seconds or (1 if quick else 4),
        streams=args.streams,
        open_streams=300 if quick else 1000,
        idle_connections=500 if quick else 2000,
        connections=args.connections,
        proxy_core=cores[0],
        load_core=cores[1],
        subject="nginx" if args.stand_in else "gatewayd",
        gatewayd=gatewayd_command(args.gatewayd),
        nginx=_which("nginx"),
        wrk=_which("wrk"),
    )


def _which(tool: str) -> str:
    # Debian keeps servers where an ordinary user's PATH does not look.
    return shutil.which(tool, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin") or ""


def chosen(only: str) -> list[Figure]:
    names = [name for name in only.split(",") if name]
    known = [figure.key for figure in ALL]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise BenchError(f"no figure {', '.join(unknown)}; there are {', '.join(known)}")
    return [figure for figure in ALL if not names or figure.key in names]


def measure(bench: Bench, figure: Figure) -> list[Row]:
    samples = Samples()
    error = ""
    try:
        figure.run(bench, samples)
    except BenchError as trouble:
        error = str(trouble)
    except Exception as trouble:  # a fault of the harness spoils one figure, not the run
        traceback.print_exc()
        error = f"harness: {trouble!r}"
    return [judge(line, samples, error) for line in figure.lines]


def raise_descriptor_limit() -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> int:
    args = arguments()
    if args.list:
        for figure in ALL:
            print(f"{figure.key:16} {'; '.join(line.title for line in figure.lines)}")
        return 0
    try:
        settings = settings_of(args)
        figures = chosen(args.only)
    except BenchError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, SHIELD.on_signal)
    os.nice(args.nice)
    raise_descriptor_limit()
    os.sched_setaffinity(0, {settings.load_core})

    subject = "nginx (stand-in)" if args.stand_in else SUBJECT
    machine = describe_machine(ROOT, settings.nginx)
    start = time.monotonic()
    rows: list[Row] = []
    try:
        with Bench(settings) as bench:
            for figure in figures:
                begun = time.monotonic()
                rows += measure(bench, figure)
                failed = " FAILED" if rows[-1].error else ""
                print(
                    f"{figure.key}: {time.monotonic() - begun:.0f} s{failed}",
                    file=sys.stderr,
                    flush=True,
                )
    except KeyboardInterrupt:
        print("benchmarks: interrupted, everything stopped, nothing saved", file=sys.stderr)
        return 130
    run = {
        "machine": machine,
        "settings": {
            k: v for k, v in asdict(settings).items() if k not in ("gatewayd", "nginx", "wrk")
        },
        "took_s": round(time.monotonic() - start, 1),
    }
    print(table(rows, subject))
    # A stand-in's figures are nobody's; a look or a part is kept only when asked for.
    if not args.stand_in and (args.save or not (args.quick or args.only)):
        print(f"saved as {save(rows, run, args.out, subject)} and .md")
    return 0 if all(row.ok is not False and not row.error for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
