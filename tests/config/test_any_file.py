"""Whatever stands anywhere in a file: it is loaded or explained, never an accident."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_load import ALL_KEYS
from test_render_diff import FULL

from gatewayd.config.errors import ConfigError
from gatewayd.config.load import load_config
from gatewayd.config.model import Config

FILES = [yaml.safe_load(text) for text in (ALL_KEYS, FULL)]
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["${X}", "unix:/a", "http://h:1", "0.0.0.0:80", "/", "file:/x", "tokens"]),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (collection, key or index) of a tree."""
    keys = tree.keys() if isinstance(tree, dict) else range(len(tree))
    found = [(tree, key) for key in keys]
    for _, key in list(found):
        if isinstance(tree[key], (dict, list)):
            found += places(tree[key])
    return found


def assert_loaded_or_explained(path: Path) -> None:
    outcome: Config | ConfigError
    try:
        outcome = load_config(str(path), {"ALICE_TOKEN": "x", "X": "1"})
    except ConfigError as exc:
        outcome = exc
    if isinstance(outcome, ConfigError):
        lines = str(outcome).split("\n")
        assert len(lines) == len(outcome.problems) > 0
        assert all(line.startswith(f"{path}:") and line.isprintable() for line in lines)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(file=st.sampled_from(FILES), data=st.data())
def test_a_file_with_anything_in_it(tmp_path: Path, file: Any, data: st.DataObject) -> None:
    tree = copy.deepcopy(file)
    for _ in range(data.draw(st.integers(1, 3))):
        where, key = data.draw(st.sampled_from(places(tree)))
        where[key] = data.draw(VALUES)
    path = tmp_path / "g.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    assert_loaded_or_explained(path)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.one_of(st.text(), st.binary()))
def test_anything_for_a_file(tmp_path: Path, text: str | bytes) -> None:
    content = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    path = tmp_path / "g.yaml"
    path.write_bytes(content)
    assert_loaded_or_explained(path)
