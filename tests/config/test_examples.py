"""Every file in configs/ and every block of docs/configuration.md is what it says it is."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from textwrap import indent

import pytest
from gateway_text import Load

from gatewayd.config.load import default_config, load_config
from gatewayd.config.schema import GatewayFile, schema_text
from gatewayd.config.table import Table

ROOT = Path(__file__).parents[2]
EXAMPLES = [*sorted((ROOT / "configs").glob("*.yaml")), ROOT / "configs/compose/gateway.yaml"]
DOCUMENT = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
ENV = {"ALICE_TOKEN": "alice-token", "CI_TOKEN_SHA256": "c1" * 32}


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{re.escape(kind)}\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_loads(path: Path) -> None:
    config = load_config(str(path), ENV)
    assert config.services or path.name == "gateway.yaml"


def test_there_are_the_examples_that_are_spoken_of() -> None:
    names = {path.name for path in EXAMPLES}
    spoken = {"gateway", "quickstart", "direct", "sglang", "auth-and-limits"}
    assert names >= {f"{name}.yaml" for name in spoken}


@pytest.mark.parametrize("text", blocks("yaml whole-file"))
def test_whole_files_of_the_document(load: Load, text: str) -> None:
    assert load(text).domain is not None


@pytest.mark.parametrize("text", blocks("yaml"))
def test_parts_of_the_document(load: Load, text: str) -> None:
    load(text, ENV)


@pytest.mark.parametrize("text", blocks("yaml service"))
def test_services_of_the_document(load: Load, text: str) -> None:
    assert load(f"domain: example.com\nservices:\n{indent(text, '  ')}").services


def test_the_document_has_blocks_of_each_kind() -> None:
    assert all(blocks(kind) for kind in ("yaml", "yaml whole-file", "yaml service"))


def all_tables(root: type[Table]) -> list[type[Table]]:
    below = root.__subclasses__()
    return [*below, *(table for each in below for table in all_tables(each))]


def test_the_document_names_every_key() -> None:
    tables = [GatewayFile, *(table for table in all_tables(Table) if table.place)]
    missing = {
        f"{table.place}.{key}"
        for table in tables
        for key in table.model_fields
        if f"`{key}`" not in DOCUMENT
    }
    # these stand in `{type: file, cert: PATH, key: PATH}` and such
    assert missing <= {
        "certificate.cert",
        "services[].certificate.cert",
        "certificate.server",
        "services[].rate_limits[].key.header",
    }


@pytest.mark.parametrize("section", ["Top level", "`listen`", "`ports`", "`log`", "`limits`"])
def test_the_defaults_of_the_document_are_the_defaults(load: Load, section: str) -> None:
    text = DOCUMENT.partition(f"### {section}\n")[2].partition("\n### ")[0]
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", text, re.MULTILINE)
    assert len(rows) >= 2
    for key, default in rows:
        line = f"{key}: {default}"
        table = "" if section == "Top level" else f"{section.strip('`')}:\n  "
        assert replace(load(f"{table}{line}\n"), source="") == default_config({}), line


def test_the_schema_file_is_current() -> None:
    kept = (ROOT / "configs/gateway.schema.json").read_text(encoding="utf-8")
    assert kept == schema_text(), "write it: gatewayd schema > configs/gateway.schema.json"
