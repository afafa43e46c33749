"""Child processes as their owner sees them: ready, gone, again, stopped, last words."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from waiting import until

from gatewayd.net.process import Child, Command, Exit, SupervisedProcess

ENV = {"PATH": os.environ.get("PATH", os.defpath)}
FOREVER = "import signal; print('here', flush=True); signal.pause()"
STUBBORN = "import signal; signal.signal(15, signal.SIG_IGN); " + FOREVER


def python(code: str, *arguments: str, **options: object) -> Command:
    argv = (sys.executable, "-I", "-c", code, *arguments)
    return Command(argv, ENV, **options)  # type: ignore[arg-type]


async def said(child: Child, word: str) -> None:
    """A `ready`: the child has printed `word`."""
    while not any(word in line for line in child.words):
        assert child.code is None, child.words
        await asyncio.sleep(0.005)


@asynccontextmanager
async def supervised(
    prepare: Callable[[int], Command], **options: object
) -> AsyncIterator[tuple[SupervisedProcess, list[Exit], asyncio.Event]]:
    exits: list[Exit] = []
    exited = asyncio.Event()

    def on_exit(end: Exit) -> None:
        exits.append(end)
        exited.set()

    process = SupervisedProcess(
        "child",
        prepare,
        on_exit=on_exit,
        **{"stop_timeout": 2.0, "first_delay": 0.01, **options},  # type: ignore[arg-type]
    )
    process.start()
    try:
        async with asyncio.timeout(30):
            yield process, exits, exited
    finally:
        await process.aclose()


async def test_it_is_started_in_a_session_of_its_own_with_only_the_given_environment() -> None:
    code = "import os; print(os.getsid(0) == os.getpid(), sorted(os.environ))"
    child = await Child.spawn("child", Command((sys.executable, "-I", "-c", code), {"A": "b"}))
    assert await child.wait() == 0
    await child.finish()
    assert child.words in [("True ['A']",), ("True ['A', 'LC_CTYPE']",)]


async def test_a_program_that_does_not_exist_is_an_oserror() -> None:
    for parent_death in (None, signal.SIGTERM):
        with pytest.raises(FileNotFoundError):
            await Child.spawn("child", Command(("/does/not/exist",), ENV, (), parent_death))


async def test_what_it_prints_is_stripped_cut_and_kept() -> None:
    lines: list[str] = []
    code = (
        "import sys; print('\\x1b[2m\\x1b[33mWARN\\x1b[0m colour\\x07', flush=True);"
        "print('x' * 10000, file=sys.stderr, flush=True);"
        "sys.stdout.buffer.write(b'bad \\xff utf-8\\n\\n\\nno newline at the end')"
    )
    child = await Child.spawn("child", python(code), lines.append)
    await child.wait()
    await child.finish()
    assert lines[0] == "WARN colour"
    assert lines[1] == "x" * 4096
    assert lines[2:] == ["bad \ufffd utf-8", "no newline at the end"]
    assert child.words == tuple(lines)


async def test_chatter_is_not_kept() -> None:
    lines: list[str] = []
    code = "print('blah: 1'); print('panic'); print('blah: 2')"
    child = await Child.spawn("child", python(code, chatter=re.compile("^blah")), lines.append)
    await child.wait()
    await child.finish()
    assert lines == ["panic"]
    assert child.words == ("panic",)


async def test_a_flood_of_output_neither_blocks_it_nor_grows_what_is_kept() -> None:
    child = await Child.spawn("child", python("for i in range(100000): print('line', i)"))
    async with asyncio.timeout(30):
        assert await child.wait() == 0
    await child.finish()
    assert len(child.words) == 40
    assert child.words[-1] == "line 99999"


async def test_descriptors_are_passed_with_their_numbers() -> None:
    read_end, write_end = os.pipe()
    code = "import os, sys; os.write(int(sys.argv[1]), b'hello')"
    child = await Child.spawn("child", python(code, str(write_end), pass_fds=(write_end,)))
    assert await child.wait() == 0
    await child.finish()
    assert os.read(read_end, 10) == b"hello"
    os.close(read_end)
    os.close(write_end)


@pytest.mark.parametrize(
    ("code", "expected"), [(FOREVER, -signal.SIGTERM), (STUBBORN, -signal.SIGKILL)]
)
async def test_stop_terminates_and_then_kills(code: str, expected: int) -> None:
    child = await Child.spawn("child", python(code))
    await said(child, "here")
    await child.stop(0.3)
    assert child.code == expected


async def test_a_grandchild_that_keeps_the_pipe_does_not_delay_the_end() -> None:
    # It lives for as long as this test holds the other end, whatever becomes of the test.
    waits, held = os.pipe()
    code = (
        "import subprocess, sys;"
        "wait = 'import os, sys; os.read(int(sys.argv[1]), 1)';"
        "command = [sys.executable, '-c', wait, sys.argv[1]];"
        "print(subprocess.Popen(command, pass_fds=(int(sys.argv[1]),)).pid, flush=True)"
    )
    child = await Child.spawn("child", python(code, str(waits), pass_fds=(waits,)))
    os.close(waits)
    try:
        async with asyncio.timeout(30):
            assert await child.wait() == 0
            await child.finish()
        os.kill(int(child.words[0]), 0)  # it is still there
    finally:
        os.close(held)


PARENT = """\
import asyncio, os, sys
sys.path.insert(0, sys.argv[2])
from gatewayd.net.process import Child, Command

async def main():
    code = "import signal; print('here', flush=True); signal.pause()"
    command = Command((sys.executable, "-I", "-c", code), {}, (int(sys.argv[1]),))
    child = await Child.spawn("grandchild", command)
    while not child.words:
        await asyncio.sleep(0.005)
    print("spawned", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_it_dies_with_a_parent_that_is_killed() -> None:
    read_end, write_end = os.pipe()
    root = str(Path(__file__).parents[2])
    parent = await Child.spawn(
        "parent", python(PARENT, str(write_end), root, pass_fds=(write_end,))
    )
    os.close(write_end)
    async with asyncio.timeout(30):
        await said(parent, "spawned")
        parent.send(signal.SIGKILL)
        # The grandchild holds the only other write end: end of file is its death.
        assert await asyncio.to_thread(os.read, read_end, 1) == b""
    os.close(read_end)
    await parent.wait()
    await parent.finish()


async def test_killed_it_is_started_again_and_says_so() -> None:
    async with supervised(lambda n: python(FOREVER), ready=lambda child: said(child, "here")) as (
        process,
        exits,
        exited,
    ):
        assert await process.wait_ready(30)
        first = process.pid
        assert first is not None
        assert process.state == "ready"
        os.kill(first, signal.SIGKILL)
        await exited.wait()
        assert process.state == "restarting"
        assert await process.wait_ready(30)
        assert process.pid != first
        assert process.restarts == 1
        assert [str(end) for end in exits] == ["was ended by SIGKILL"]
        assert exits[0].was_ready
        assert exits[0].words == ("here",)
    assert process.state == "stopped"
    assert process.pid is None


async def test_starts_are_spaced_by_the_growing_backoff() -> None:
    starts: list[float] = []
    loop = asyncio.get_running_loop()

    def prepare(n: int) -> Command:
        assert n == len(starts)
        starts.append(loop.time())
        return python("import sys; sys.exit('no luck')")

    async with supervised(
        prepare, ready=lambda child: said(child, "never"), first_delay=0.2, max_delay=0.5
    ) as (process, exits, _):
        await until(lambda: len(exits) >= 6)
        assert process.state == "failed"
        assert process.words == ("no luck",)
        assert str(process.last_exit) == "exited with 1"
    gaps = [later - earlier for earlier, later in itertools.pairwise(starts)]
    for gap, least in zip(gaps, [0.2, 0.4, 0.5, 0.5, 0.5], strict=False):
        assert gap >= least - 0.01


async def test_one_that_ran_for_long_is_replaced_at_once() -> None:
    async with supervised(
        lambda n: python(FOREVER),
        ready=lambda child: said(child, "here"),
        first_delay=0.3,
        max_delay=60.0,
        stable_after=0.3,
    ) as (process, exits, _):
        for _ in range(8):
            assert await process.wait_ready(30)
            await asyncio.sleep(0.3)  # what is tested is how long it ran
            process.kill("for the test")
            await until(lambda: process.state != "ready")
        # With a growing backoff the eighth start alone would have come after 19 s.
        assert process.starts >= 8
        assert str(exits[0]) == "was ended by SIGKILL (for the test)"


@pytest.fixture
def stubborn_from_birth() -> Iterator[None]:
    """Children ignore SIGTERM before they run a line of their own."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGTERM, before)


async def test_one_that_does_not_become_ready_in_time_is_ended(stubborn_from_birth: None) -> None:
    async with supervised(
        lambda n: python(FOREVER),
        ready=lambda child: said(child, "never"),
        ready_timeout=0.3,
        stop_timeout=0.1,
    ) as (process, exits, exited):
        await exited.wait()
        assert str(exits[0]) == "was ended by SIGKILL (not ready within 0.3 s)"
        assert not exits[0].was_ready
        assert not await process.wait_ready(0.01)


async def test_a_ready_check_that_fails_ends_the_run_with_its_reason() -> None:
    async def ready(child: Child) -> None:
        raise ConnectionError("somebody else answers")

    async with supervised(lambda n: python(FOREVER), ready=ready) as (_, exits, exited):
        await exited.wait()
        assert exits[0].reason == "not ready: somebody else answers"


async def test_a_command_that_cannot_be_prepared_or_started_is_a_failed_start() -> None:
    def prepare(n: int) -> Command:
        if n == 0:
            raise OSError("no free port")
        if n == 1:
            raise RuntimeError("a bug")
        return Command(("/does/not/exist",), ENV) if n == 2 else python(FOREVER)

    async with supervised(prepare, ready=lambda child: said(child, "here")) as (process, exits, _):
        assert await process.wait_ready(30)
        assert [str(end) for end in exits] == [
            "could not be started: no free port",
            "could not be started: no such program: /does/not/exist",
        ]
        assert process.starts == 4


async def test_closing_while_it_starts_leaves_nothing_behind() -> None:
    pids: list[int] = []

    async def ready(child: Child) -> None:
        pids.append(child.pid)
        await asyncio.sleep(60)

    async with supervised(lambda n: python(FOREVER), ready=ready) as (process, exits, _):
        await until(lambda: bool(pids))
        await process.aclose()
        assert exits == []
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


async def test_closing_in_a_hurry_kills() -> None:
    async with supervised(
        lambda n: python(STUBBORN), ready=lambda child: said(child, "here"), stop_timeout=60.0
    ) as (process, _, _):
        assert await process.wait_ready(30)
        pid = process.pid
        assert pid is not None
        closing = asyncio.ensure_future(process.aclose())
        await asyncio.sleep(0.05)
        closing.cancel()
        await asyncio.gather(closing, return_exceptions=True)
        await until(lambda: process.state == "stopped")
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
