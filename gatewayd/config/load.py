"""From a file and an environment to one `Config`, or to every problem of the file.

Owns: the order of the steps, and the only reading of the file. Does not own: the steps.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from gatewayd.config.convert import convert
from gatewayd.config.errors import ConfigError, Problem
from gatewayd.config.model import Config
from gatewayd.config.rules import CheckCertificate, CheckRouter, Rules
from gatewayd.config.schema import GatewayFile
from gatewayd.config.source import Place, parse_source
from gatewayd.config.validate import validate

FILE_MAX = 16 * 1024 * 1024


def load_config(
    path: str,
    env: Mapping[str, str],
    *,
    check_router: CheckRouter | None = None,
    check_certificate: CheckCertificate | None = None,
) -> Config:
    """The effective configuration. Raises `ConfigError` with all that is wrong.

    `check_router` answers what is wrong with a router: not installed, unknown policy or flag;
    `check_certificate` what is wrong with a certificate, and which names it has.
    """
    tree, problems = parse_source(_read(path), path, env)

    def report(place: Place, message: str, suggestion: str | None = None) -> None:
        problem = Problem(path, place.node.line, place.path, message, suggestion)
        if problem not in problems:
            problems.append(problem)

    raw = validate(tree, report)
    config = convert(
        raw,
        Rules(tree, report),
        source=os.path.abspath(path),
        check_router=check_router,
        check_certificate=check_certificate,
    )
    if problems:
        raise ConfigError(tuple(sorted(problems, key=lambda problem: problem.line or 0)))
    return config


def default_config(env: Mapping[str, str]) -> Config:
    """What is effective without a file. `env` is what a file would take its variables from;
    no default does."""
    return convert(GatewayFile(), Rules(), source="")


def _read(path: str) -> str:
    def fail(message: str, line: int | None = None) -> ConfigError:
        return ConfigError((Problem(path, line, "", message),))

    try:
        with open(path, "rb") as file:
            content = file.read(FILE_MAX + 1)
    except OSError as exc:
        raise fail(f"cannot be read: {exc.strerror}") from None
    except ValueError:  # a NUL in the path
        raise fail("cannot be read: not a path") from None
    if len(content) > FILE_MAX:
        raise fail(f"is longer than {FILE_MAX // 1024 // 1024} MiB")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = content.count(b"\n", 0, exc.start) + 1
        raise fail(f"is not UTF-8 text (byte 0x{content[exc.start]:02x})", line) from None
