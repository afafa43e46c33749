"""What the documents say is there: links, files, functions, metrics, commands, configurations."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast, get_args

import pytest
from exported import exported

from gatewayd import __version__
from gatewayd.cli.options import parse
from gatewayd.config.load import load_config
from gatewayd.core import reply as replies
from gatewayd.core.model import Log
from gatewayd.core.reply import LocalReply
from gatewayd.core.retry import Failure
from gatewayd.net.tls_transport import HandshakeFailure
from gatewayd.proxy.accesslog import AccessLog
from gatewayd.proxy.question import Outcome

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "gatewayd"
DOCS = ROOT / "docs"
ALL = [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), ROOT / "benchmarks/README.md"]
DECISIONS = sorted((DOCS / "adr").glob("[0-9]*.md"))
# Those that are read beside the code.
ABOUT_CODE = [
    *(DOCS / "request.md", DOCS / "architecture.md", DOCS / "THREAT_MODEL.md"),
    *(DOCS / "operations.md", *DECISIONS),
]
FOREIGN = {"RequestHandler", "ClientSession", "TimeoutStopSec"}

by_name = pytest.mark.parametrize("path", ALL, ids=lambda path: path.relative_to(ROOT).as_posix())
about_code = pytest.mark.parametrize("path", ABOUT_CODE, ids=lambda path: path.name)


def document(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def prose(path: Path) -> str:
    """A document without its blocks of code."""
    return re.sub(r"^ *```.*?^ *```$", "", document(path), flags=re.MULTILINE | re.DOTALL)


README = document(ROOT / "README.md")
OPERATIONS = document(DOCS / "operations.md")


def blocks(text: str, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


# --- links ---------------------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    """The ids that headings get where Markdown is shown."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@by_name
def test_links_lead_somewhere(path: Path) -> None:
    dead = []
    for link in re.findall(r"\]\(([^()\s]+)\)", prose(path)):
        if re.match(r"https?://", link):
            continue
        to, _, anchor = link.partition("#")
        target = (path.parent / to).resolve() if to else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert dead == []


@by_name
def test_no_path_of_one_machine(path: Path) -> None:
    here = {str(ROOT)} | ({sys.prefix} if sys.prefix != sys.base_prefix else set())
    text = document(path)
    assert [place for place in here if re.search(rf"{re.escape(place)}(?![\w-])", text)] == []


# --- names of the code ---------------------------------------------------------------------------


class Names:
    """Functions and what belongs to a class (methods, fields), by file and all together."""

    def __init__(self) -> None:
        self.functions: dict[str, set[str]] = {}
        self.members: dict[str, set[str]] = {}
        for path in PACKAGE.rglob("*.py"):
            found = self.functions[path.relative_to(PACKAGE).as_posix()] = set()
            self._collect(ast.parse(document(path)), found)

    def _collect(self, tree: ast.Module, functions: set[str]) -> None:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                functions.add(node.name)
            elif isinstance(node, ast.ClassDef):
                members = self.members.setdefault(node.name, set())
                bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
                members |= {f"<{base}>" for base in bases}
                for part in node.body:
                    if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef):
                        members.add(part.name)
                        functions.add(f"{node.name}.{part.name}")
                    elif isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                        members.add(part.target.id)

    def has(self, name: str) -> bool:
        owner, dot, member = name.rpartition(".")
        if dot:
            return member in self.members.get(owner, ())
        return name in self.members or any(name in here for here in self.functions.values())


NAMES = Names()


def code_of(path: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(path))


@about_code
def test_files_that_are_named_exist(path: Path) -> None:
    named = {word for word in code_of(path) if re.fullmatch(r"[\w/]+\.py", word)}
    assert [n for n in named if not (PACKAGE / n).exists() and not (ROOT / n).exists()] == []


@about_code
def test_functions_that_are_named_exist(path: Path) -> None:
    named = {word[:-2] for word in code_of(path) if re.fullmatch(r"[\w.]+\(\)", word)}
    assert sorted(name for name in named if not NAMES.has(name)) == []


@about_code
def test_classes_and_their_fields_that_are_named_exist(path: Path) -> None:
    humps = r"[A-Z][a-z]+(?:[A-Z][a-z]+)+"
    named = {word for word in code_of(path) if re.fullmatch(rf"{humps}(?:\.\w+)?", word)}
    assert sorted(name for name in named - FOREIGN if not NAMES.has(name)) == []


@about_code
def test_functions_are_in_the_files_named_beside_them(path: Path) -> None:
    """Where a document says `name()` in `file.py`, or `name()` (`file.py`)."""
    pairs = re.findall(r"`([\w.]+)\(\)`\s(?:in\s|\()`([\w/]+\.py)`", prose(path))
    assert [(n, file) for n, file in pairs if n not in NAMES.functions.get(file, ())] == []


def test_a_wrong_name_would_be_found() -> None:
    assert NAMES.has("Edge.begin")
    assert NAMES.has("normal_path")
    assert NAMES.has("Endpoint.reuse_s")
    assert not NAMES.has("Edge.normal_path")
    assert not NAMES.has("begins")
    assert not NAMES.has("Endpoint.reuse_ms")
    assert "normal_path" in NAMES.functions["core/routing.py"]
    assert "normal_path" not in NAMES.functions["core/headers.py"]


# --- metrics and log -----------------------------------------------------------------------------


def spoken_of(text: str) -> Iterator[tuple[str, set[str]]]:
    """(metric, labels) of every mention; a histogram may be named without its suffix."""
    for name, labels in re.findall(r"\b(gatewayd_\w+)(?:\{([^}\n]*)\})?", text):
        yield name, set(re.findall(r"(\w+)(?=[,=]|=~|$)", re.sub(r'"[^"]*"', "", labels)))


@by_name
async def test_metrics_that_are_named_are_exported(path: Path) -> None:
    metrics = await exported()
    for name, labels in spoken_of(document(path)):
        known = metrics.get(name) or metrics.get(f"{name}_bucket")
        assert known is not None or name in metrics, name
        assert labels <= (known or set()), f"{name}{labels}"


async def test_every_metric_is_explained() -> None:
    explained = {name for name, _ in spoken_of(OPERATIONS)}
    for name in await exported():
        family = re.sub(r"_(bucket|sum|count|created)$", "", name)
        assert name in explained or family in explained, name


def test_every_word_of_a_label_is_explained() -> None:
    own = [value for value in vars(replies).values() if isinstance(value, LocalReply)]
    own += [replies.bad_request(""), replies.too_many(1)]
    words = {reply.rejection for reply in own} - {""}
    words |= {failure.kind for failure in Failure} | {outcome.value for outcome in Outcome}
    words |= {f"tls_{failure}" for failure in get_args(HandshakeFailure)}
    assert sorted(word for word in words if f"`{word}`" not in OPERATIONS) == []


def test_access_lines_have_the_fields_that_are_explained(tmp_path: Path) -> None:
    (shown,) = blocks(OPERATIONS, "json")
    fields = list(json.loads(shown))
    exchange = SimpleNamespace(
        started_at=1.0,
        first_byte_at=1.5,
        ended_at=2.0,
        request_id=b"id",
        client="127.0.0.1",
        service_name="llm",
        replica="a",
        via="direct",
        method="GET",
        target="/v1/models?secret=1",
        status=200,
        bytes_in=0,
        bytes_out=2,
        closed_by="-",
        token_name="alice",  # noqa: S106  (a name, not a token)
    )
    log = AccessLog(Log(format="json", access=str(tmp_path / "log")))
    log.write([cast(Any, exchange)])
    log.close()
    line = json.loads((tmp_path / "log").read_text())
    assert list(line) == fields
    assert line["path"] == "/v1/models"
    assert [field for field in fields if f"`{field}`" not in OPERATIONS] == []


@pytest.mark.needs("promtool")
def test_alerts_are_rules_of_prometheus(tmp_path: Path) -> None:
    (rules,) = blocks(OPERATIONS, "yaml alerts")
    file = tmp_path / "alerts.yml"
    file.write_text(rules)
    subprocess.run(["promtool", "check", "rules", str(file)], check=True, capture_output=True)


# --- what is typed -------------------------------------------------------------------------------


@pytest.mark.parametrize("text", blocks(README, "yaml"))
def test_files_of_the_readme_load(tmp_path: Path, text: str) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(text)
    assert load_config(str(file), {}).services


@pytest.mark.parametrize(
    "line",
    [
        line
        for text in (README, OPERATIONS)
        for block in blocks(text, "sh")
        for line in block.splitlines()
        if re.match(r"(\S+/)?gatewayd ", line)
    ],
)
def test_commands_are_commands(line: str) -> None:
    assert callable(parse(shlex.split(line, comments=True)[1:]).run)


@pytest.mark.parametrize("text", blocks(README, "sh"))
def test_shell_lines_are_shell(text: str) -> None:
    subprocess.run(["sh", "-n"], input=text, text=True, check=True)


def test_python_of_the_readme_is_python() -> None:
    (text,) = blocks(README, "python")
    compile(text, "README.md", "exec")


def test_the_measured_comparison_has_its_place() -> None:
    assert README.count("<!-- bench:begin -->") == README.count("<!-- bench:end -->") == 1


# --- the rest ------------------------------------------------------------------------------------


def test_the_changelog_knows_this_version() -> None:
    changelog = document(ROOT / "CHANGELOG.md")
    assert re.search(rf"^## \[{re.escape(__version__)}\]", changelog, re.MULTILINE)


def test_decisions_are_numbered_listed_and_of_one_form() -> None:
    index = document(DOCS / "adr/README.md")
    for number, path in enumerate(DECISIONS, 1):
        text = document(path)
        assert path.name.startswith(f"{number:04}-")
        assert text.startswith(f"# {number:04} ")
        assert f"]({path.name})" in index
        headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
        assert headings == ["Context", "Decision", "What lost", "Consequences"]
