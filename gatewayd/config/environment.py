"""What a string of the file takes from outside: `${NAME}`, `${NAME:-default}`, `file:/path`.

Owns: the only reading of environment variables and secret files.
Does not own: which strings there are (config.source).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from gatewayd.config.errors import BadValueError

FILE_MAX = 64 * 1024  # a secret, not a document; also what /dev/zero is cut at

_REFERENCE = re.compile(
    r"\$\$\{"  # an escaped `${`
    r"|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<default>:-[^}]*)?\}"
    r"|\$\{"  # the beginning of something that is no reference
)
_BARE_NAME = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)")


class Interpolated(str):
    """A string that came from outside: it may stand where a number is expected, and messages
    show what is written in the file in its place."""

    __slots__ = ()


def interpolate(text: str, env: Mapping[str, str]) -> str:
    """The text with its references replaced; an `Interpolated` when there were any."""
    if bare := _BARE_NAME.fullmatch(text):
        raise BadValueError(
            f"`{text}` is not replaced by the variable's value",
            suggestion=f"did you mean `${{{bare[1]}}}`?",
            show_found=False,
        )

    def value(match: re.Match[str]) -> str:
        if match[0] == "$${":
            return "${"
        name, default = match["name"], match["default"]
        if name is None:
            raise BadValueError("`${` begins a reference: expected ${NAME} or ${NAME:-default}")
        if default is not None:
            return env.get(name) or default.removeprefix(":-")
        if name not in env:
            raise BadValueError(f"environment variable {name} is not set", show_found=False)
        return env[name]

    replaced = _REFERENCE.sub(value, text)
    if text.startswith("file:"):  # decided by the file's own words, never by a variable's value
        return Interpolated(_read_secret(replaced.removeprefix("file:")))
    return Interpolated(replaced) if replaced != text else text


def _read_secret(path: str) -> str:
    if not path.startswith("/"):
        raise BadValueError("expected file: and an absolute path")
    try:
        with open(path, "rb") as file:
            content = file.read(FILE_MAX + 1)
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the path
        reason = os.strerror(exc.errno) if isinstance(exc, OSError) and exc.errno else str(exc)
        raise BadValueError(f"cannot read {path}: {reason}", show_found=False) from None
    if len(content) > FILE_MAX:
        raise BadValueError(f"{path} is longer than {FILE_MAX} bytes", show_found=False)
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise BadValueError(f"{path} is not UTF-8 text", show_found=False) from None
    return text.removesuffix("\n").removesuffix("\r")
