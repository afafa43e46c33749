from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatewayd.core.model_calls import (
    Call,
    DescribeCall,
    ListCall,
    ModelName,
    Operation,
    read_call,
    unknown_model,
)
from gatewayd.core.reply import LocalReply


def find(body: bytes, cuts: list[int] | None = None) -> str | None:
    name = ModelName()
    ends = [*sorted(cuts or []), len(body)]
    for start, end in zip([0, *ends], ends, strict=False):
        if name.feed(body[start:end]):
            break
    return name.value


values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["model", "x", '"', "\\"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    before=st.dictionaries(st.text().filter(lambda key: key != "model"), values, max_size=3),
    model=st.text(min_size=1, max_size=20),
    after=st.dictionaries(st.text().filter(lambda key: key != "model"), values, max_size=3),
    ascii_only=st.booleans(),
    indent=st.none() | st.integers(0, 2),
    data=st.data(),
)
def test_the_model_is_found_wherever_the_body_is_cut(
    before: dict[str, Any],
    model: str,
    after: dict[str, Any],
    ascii_only: bool,
    indent: int | None,
    data: st.DataObject,
) -> None:
    call = {**before, "model": model, **after}
    text = json.dumps(call, ensure_ascii=ascii_only, indent=indent)
    body = text.encode("utf-8", "surrogatepass")
    cuts = data.draw(st.lists(st.integers(0, len(body)), max_size=6))
    assert find(body, cuts) == model


@given(st.binary(max_size=60) | values.map(lambda value: json.dumps(value).encode()))
def test_whatever_comes_is_read_without_fault(body: bytes) -> None:
    find(body)


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (b'{"model": "a", "model": "b"}', "a"),
        (b'{"model": 1, "model": "b"}', None),
        (b'{"x": {"model": "a"}}', None),
        (b'[{"model": "a"}]', None),
        (b'{"model": "a"', None),
        (b'{"model": "a" "b"}', None),
        (b'{"model": "\\u0061"}', "a"),
        (b'{"mod\\u0065l": "a"}', None),
        (b'{"x": "' + b"y" * 300_000 + b'", "model": "a"}', "a"),
    ],
    ids=range(9),
)
def test_what_counts_as_the_model(body: bytes, model: str | None) -> None:
    assert find(body) == model


def test_no_more_is_read_than_is_needed() -> None:
    name = ModelName()
    assert name.feed(b'{"model": "a", ')
    assert name.value == "a"


@pytest.mark.parametrize(
    ("method", "target", "call"),
    [
        ("GET", "/models", ListCall()),
        ("HEAD", "/v1/models?x", ListCall()),
        ("GET", "/v1/models/a%2Fb", DescribeCall("a/b")),
        ("GET", "/models/a/b", DescribeCall("a/b")),
        ("POST", "/v1/responses?a=b", Operation("responses", "?a=b")),
    ],
)
def test_calls(method: str, target: str, call: Call) -> None:
    assert read_call(method, target) == call


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/v1/models/", 404),
        ("GET", "/v1/", 404),
        ("GET", "*", 404),
        ("POST", "//models", 404),
        ("POST", "/v1/chat/completions/", 404),
        ("DELETE", "/v1/models/a", 405),
        ("GET", "/completions", 405),
    ],
)
def test_what_is_no_call(method: str, target: str, status: int) -> None:
    reply = read_call(method, target)
    assert isinstance(reply, LocalReply)
    assert reply.status == status


def test_a_long_name_is_not_echoed_whole() -> None:
    assert len(unknown_model("x" * 100_000, "main").message) < 2000
