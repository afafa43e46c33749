"""Prompts out of messages, by chat templates that run in processes of their own.

Owns: those processes, one per template, how many there are and how long one may take. Does not
own: what runs in them (prompt_child), what a prompt is made for (tgi).

A process per template, so that one which loops for ever delays nobody but its own model.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import struct
import sys
from collections import OrderedDict
from typing import Final

TIMEOUT_S: Final = 5.0  # for one prompt, the start of the process and those before it included
_RENDERERS_MAX: Final = 8
_SIZE: Final = struct.Struct("!I")


class PromptFailedError(Exception):
    """No prompt; the text is for the client."""


class PromptsBusyError(Exception):
    """No room for another template now."""


class Prompts:
    """One per worker."""

    def __init__(self) -> None:
        self._renderers: OrderedDict[str, _Renderer] = OrderedDict()  # the longest unused first
        self._ending: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Prompts {len(self._renderers)} templates>"

    async def render(self, template: str, variables: dict[str, object]) -> str:
        """Raises PromptFailedError and PromptsBusyError."""
        renderer = self._renderers.get(template)
        if renderer is None:
            self._make_room()
            renderer = self._renderers[template] = _Renderer(template)
        self._renderers.move_to_end(template)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await renderer.render(variables)
        except TimeoutError:
            raise PromptFailedError("it takes too long") from None

    def _make_room(self) -> None:
        if len(self._renderers) < _RENDERERS_MAX:
            return
        idle = next((key for key, each in self._renderers.items() if not each.busy), None)
        if idle is None:
            raise PromptsBusyError
        task = asyncio.get_running_loop().create_task(self._renderers.pop(idle).aclose())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def aclose(self) -> None:
        renderers = list(self._renderers.values())
        self._renderers.clear()
        await asyncio.gather(*(renderer.aclose() for renderer in renderers), *self._ending)


class _Renderer:
    """One template and the process that runs it, which is started when it is needed."""

    def __init__(self, template: str) -> None:
        self._template = template
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._waiting = 0

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    async def render(self, variables: dict[str, object]) -> str:
        self._waiting += 1
        try:
            async with self._turn:
                return await self._ask(json.dumps(variables).encode())
        finally:
            self._waiting -= 1

    async def _ask(self, question: bytes) -> str:
        try:
            process = self._process or await self._started()
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(_SIZE.pack(len(question)) + question)
            await process.stdin.drain()
            (size,) = _SIZE.unpack(await process.stdout.readexactly(_SIZE.size))
            answer = (await process.stdout.readexactly(size)).decode()
        except (OSError, asyncio.IncompleteReadError) as error:
            await self.aclose()
            raise PromptFailedError("it ended the process that ran it") from error
        except BaseException:
            # Somebody stopped waiting in the middle of it: the next answer would be theirs.
            await asyncio.shield(self.aclose())
            raise
        if answer[:1] != "+":
            raise PromptFailedError(answer[1:])
        return answer[1:]

    async def _started(self) -> asyncio.subprocess.Process:
        starting = asyncio.get_running_loop().create_task(self._start())
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            await asyncio.wait((starting,))  # a process that is half started has no owner
            starting.exception()
            raise

    async def _start(self) -> asyncio.subprocess.Process:
        environment = {k: v for k, v in os.environ.items() if k in ("PATH", "PYTHONPATH", "TZ")}
        self._process = process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "gatewayd.proxy.prompt_child"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment,
        )
        template = self._template.encode()
        assert process.stdin is not None
        process.stdin.write(_SIZE.pack(len(template)) + template)
        return process

    async def aclose(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.communicate()
