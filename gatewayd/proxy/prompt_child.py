"""The process that makes prompts: chat templates, which are programs of strangers, run here.

Owns: rendering, its sandbox, what the process may use. Does not own: when it is started, how long
it may take (prompts).

Jinja's sandbox keeps a template from the objects of the interpreter, but not from looping for
ever or filling memory; a process can be killed for the one, and has a bound for the other.

    python -P -m gatewayd.proxy.prompt_child        # frames on stdin, answers on stdout
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable
from datetime import datetime
from typing import BinaryIO, Final, NoReturn

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

PROMPT_MAX: Final = 16 * 1024 * 1024  # characters
_MEMORY_MAX: Final = 512 * 1024 * 1024
_SIZE: Final = struct.Struct("!I")
_PR_SET_PDEATHSIG: Final = 1


class PromptError(ValueError):
    """The template cannot make a prompt of this; the text is for the client."""


def compile_template(source: str) -> Template:
    """With what templates of models are written for. Raises TemplateError."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.filters["tojson"] = _to_json
    return environment.from_string(source)


def _raise_exception(message: object) -> NoReturn:
    raise TemplateError(str(message))


def _to_json(value: object, indent: int | None = None) -> str:
    """Not Jinja's own, which escapes for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def render(template: Template, variables: dict[str, object]) -> str:
    """Raises PromptError."""
    pieces, size = [], 0
    try:
        for piece in template.generate(**variables):
            size += len(piece)
            if size > PROMPT_MAX:
                raise PromptError("the prompt is too long")
            pieces.append(piece)
    except MemoryError:
        raise PromptError("it needs too much memory") from None
    except RecursionError:
        raise PromptError("it calls itself without end") from None
    except PromptError:
        raise
    except Exception as error:  # whatever a program of strangers does
        raise PromptError(str(error) or type(error).__name__) from None
    return "".join(pieces)


def serve(stdin: BinaryIO, stdout: BinaryIO) -> None:
    """The first frame is the template, every other the variables of one prompt."""
    source = read_frame(stdin)
    if source is None:
        return
    make: Callable[[dict[str, object]], str]
    try:
        template = compile_template(source.decode())
        make = lambda variables: render(template, variables)  # noqa: E731
    except Exception as error:
        why = str(error)

        def make(variables: dict[str, object]) -> str:
            raise PromptError(why)

    while (frame := read_frame(stdin)) is not None:
        try:
            answer = b"+" + make(json.loads(frame)).encode("utf-8", "replace")
        except PromptError as error:
            answer = b"-" + str(error).encode("utf-8", "replace")
        stdout.write(framed(answer))
        stdout.flush()


def framed(data: bytes) -> bytes:
    return _SIZE.pack(len(data)) + data


def read_frame(stream: BinaryIO) -> bytes | None:
    """None at the end."""
    head = stream.read(_SIZE.size)
    if len(head) < _SIZE.size:
        return None
    (size,) = _SIZE.unpack(head)
    return stream.read(size)


def main() -> None:
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:
        return
    confine()
    serve(sys.stdin.buffer, sys.stdout.buffer)


def confine() -> None:
    """From here on it computes and answers, and has no use for anything else: not a file, a socket
    or a process can be opened, should somebody get out of the sandbox."""
    warm_up()
    # The worker was itself handed some to inherit, and uvloop closes none of them here.
    os.closerange(3, max(int(fd) for fd in os.listdir("/proc/self/fd")) + 1)
    os.nice(10)  # streams come first
    for kind, most in (
        (resource.RLIMIT_AS, _MEMORY_MAX),
        (resource.RLIMIT_NOFILE, 3),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))


def warm_up() -> None:
    """What Jinja and Python load when they first need it is loaded now."""
    for source in ("{{ strftime_now('%c') }}{{ [1] | tojson }}", "{{ raise_exception('x') }}"):
        try:
            render(compile_template(source), {})
        except PromptError:
            continue  # that it fails is what loads the rest
    try:
        compile_template("{% for %}")
    except TemplateError:
        pass


if __name__ == "__main__":
    main()
