"""The import rules of docs/architecture.md, read off the syntax trees of the whole package.

Each module belongs to a plane, its first folder (or file) below `gatewayd`. Imports under
`TYPE_CHECKING` count: a type is a dependency too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "gatewayd"
LONGEST_FILE = 400  # 300 is what we aim at

# Plane -> what of ours it may import. `.` is the package itself (its version).
MAY_IMPORT: Mapping[str, frozenset[str]] = {
    "core": frozenset({"core"}),
    "net": frozenset({"core", "net", "."}),
    "config": frozenset({"core", "config", "."}),
    "proxy": frozenset({"core", "net", "proxy", "."}),
    "bridge": frozenset({"core", "net", "proxy", "bridge", "."}),
    "routers": frozenset(
        {
            *{"core", "net", "routers.base", "."},
            # What routers with an HTTP management API share.
            *{"routers.http_api", "routers.http_flags", "routers.http_logs"},
            *{"routers.http_roles", "routers.http_router", "routers.http_traits"},
        }
    ),
    "control": frozenset({"core", "net", "config", "control", "routers.base", "."}),
    "demo": frozenset({"core", "net", "config", "control", "routers.base", "demo", "."}),
    "cli": frozenset(
        {
            *{"core", "net", "config", "control", "routers.base", "demo", "."},
            *{"proxy", "bridge", "cli"},
        }
    ),
    "__main__": frozenset({"cli"}),
    ".": frozenset(),
}
IMPURE = frozenset(
    {
        *{"asyncio", "concurrent", "selectors", "signal", "socket", "ssl", "subprocess"},
        *{"threading", "multiprocessing", "time", "random", "secrets", "uuid", "logging", "os"},
        *{"aiohttp", "uvloop"},
    }
)
NEUTRAL_OF = "sglang"  # the word that only its plug-in and the demo may say
MAY_SAY_IT = ("routers/sglang/", "demo/")


def module_name(path: str) -> str:
    """`net/channel.py` -> `gatewayd.net.channel`; a package is named by its folder."""
    parts = path.removesuffix(".py").split("/")
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(["gatewayd", *parts])


def imported(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of everything imported, names of `from` imports included."""
    package = module_name(path).split(".")
    if not path.endswith("__init__.py"):
        package.pop()
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                yield from ((node.lineno, alias.name) for alias in node.names)
            case ast.ImportFrom():
                base = package[: len(package) - node.level + 1] if node.level else []
                stem = ".".join([*base, *([node.module] if node.module else [])])
                yield from ((node.lineno, f"{stem}.{alias.name}") for alias in node.names)
            case ast.Call(
                func=ast.Attribute(attr="import_module") | ast.Name(id="__import__"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield node.lineno, name


def destination(name: str) -> str:
    """The plane of an import of ours; a router plug-in is a plane of its own."""
    parts = name.split(".")[1:]
    if not parts or parts[0].startswith("__"):
        return "."
    if parts[0] == "routers" and len(parts) > 1:
        return f"routers.{parts[1]}"
    return parts[0]


def allowed_in(path: str) -> tuple[str, frozenset[str]]:
    plane = path.split("/")[0].removesuffix(".py")
    plane = "." if plane == "__init__" else plane
    allowed = MAY_IMPORT.get(plane, frozenset())
    if path.startswith("routers/") and path.count("/") > 1:  # a plug-in: itself as well
        allowed |= {destination(module_name(path))}
    return plane, allowed


def violations(sources: Mapping[str, str]) -> list[str]:
    """Every rule broken in `sources` (path below the package -> text), as `path:line: what`."""
    found: list[str] = []
    for path, text in sorted(sources.items()):
        tree = ast.parse(text, path)
        plane, allowed = allowed_in(path)
        if plane not in MAY_IMPORT:
            found.append(f"{path}:1: {plane} is no plane of the architecture")
        for line, name in imported(path, tree):
            if name.split(".")[0] != "gatewayd":
                if plane == "core" and name.split(".")[0] in IMPURE:
                    found.append(f"{path}:{line}: core is pure, it must not import {name}")
            elif destination(name) not in allowed:
                found.append(f"{path}:{line}: {plane} must not import {name}")
        if not ast.get_docstring(tree):
            found.append(f"{path}:1: no docstring that says what the module owns")
        if (lines := text.count("\n")) > LONGEST_FILE:
            found.append(f"{path}:{LONGEST_FILE}: {lines} lines, at most {LONGEST_FILE}")
        if not path.startswith(MAY_SAY_IT):
            found.extend(
                f"{path}:{number}: neutral code names {NEUTRAL_OF!r}"
                for number, line_text in enumerate(text.splitlines(), 1)
                if NEUTRAL_OF in line_text.lower()
            )
    return found


def test_the_package_keeps_the_rules() -> None:
    sources = {
        path.relative_to(PACKAGE).as_posix(): path.read_text() for path in PACKAGE.rglob("*.py")
    }
    assert len(sources) > 10
    assert violations(sources) == []


DOC = '"""Owns: x."""\n'


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("core/a.py", "import time", "core is pure, it must not import time"),
        ("core/a.py", "from os import path", "core is pure, it must not import os.path"),
        ("core/a.py", "from gatewayd.net import b", "core must not import gatewayd.net.b"),
        ("core/a.py", "from gatewayd import __version__", "core must not import"),
        ("net/a.py", "def f():\n    import gatewayd.config.model", "net must not import"),
        ("net/a.py", "from ..proxy import b", "net must not import gatewayd.proxy.b"),
        ("proxy/a.py", "from gatewayd import control", "proxy must not import gatewayd.control"),
        ("proxy/sub/a.py", "from ...config import b", "proxy must not import gatewayd.config.b"),
        ("bridge/a.py", "import gatewayd.routers.base", "bridge must not import"),
        ("config/a.py", "import gatewayd.net.b", "config must not import"),
        ("demo/a.py", "import gatewayd.proxy.b", "demo must not import"),
        ("control/a.py", "import gatewayd.bridge.b", "control must not import"),
        (
            "control/a.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import gatewayd.proxy.b",
            "control must not import",
        ),
        (
            "control/a.py",
            "import importlib\nimportlib.import_module('gatewayd.routers.other')",
            "control must not import gatewayd.routers.other",
        ),
        ("cli.py", "from gatewayd.routers.other import B", "cli must not import"),
        ("routers/base.py", "import gatewayd.control.b", "routers must not import"),
        ("routers/other/a.py", "import gatewayd.routers.third.b", "routers must not import"),
        ("net/a.py", "# like SGLang's", "neutral code names"),
        ("utils.py", "", "utils is no plane"),
        ("net/a.py", "\n" * 401, "402 lines"),
    ],
)
def test_a_violation_is_caught(path: str, text: str, expected: str) -> None:
    (found,) = violations({path: DOC + text})
    assert expected in found


def test_a_missing_docstring_is_caught() -> None:
    assert violations({"net/a.py": "x = 1\n"}) == [
        "net/a.py:1: no docstring that says what the module owns"
    ]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("core/a.py", "from gatewayd.core.model import Service\nfrom . import b"),
        ("control/a.py", "from gatewayd.routers import base\nfrom gatewayd import __version__"),
        ("bridge/a.py", "from gatewayd.proxy.forward import relay"),
        ("routers/sglang/a.py", "from gatewayd.routers.sglang.b import C  # SGLang's own"),
        ("routers/sglang/a.py", "from . import b\nfrom ..base import Router"),
        ("cli.py", "from gatewayd.proxy import worker\nfrom gatewayd.demo import run"),
        ("__main__.py", "from gatewayd.cli import main"),
        ("demo/a.py", "from gatewayd.control.control import Control  # sglang"),
    ],
)
def test_what_is_allowed_is_allowed(path: str, text: str) -> None:
    assert violations({path: DOC + text}) == []
