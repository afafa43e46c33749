"""Fields of a JSON object changed on its way, however it is cut into pieces."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatewayd.core.json_fields import HOLD_MAX, FieldChanger, HeldTooLongError

NAMES = ("host", "port")


def change(found: Mapping[str, Any]) -> Mapping[str, Any]:
    return {name: {"was": value} for name, value in found.items()}


def passed(data: bytes, size: int | None = None) -> bytes:
    fields = FieldChanger(NAMES, change)
    size = size or max(1, len(data))
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join([*map(fields.feed, pieces), fields.end()])


@pytest.mark.parametrize("size", [1, 2, 3, 7, None])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('{"host":"h","port":1}', '{"host":{"was": "h"},"port":{"was": 1}}'),
        ('{ "a" : 1 , "host" : "h" , "z":2}', '{ "a" : 1 , "host" :{"was": "h"}, "z":2}'),
        ('{"port":null,"x":[1,{"host":1}],"host":["h","i"]}',
         '{"port":{"was": null},"x":[1,{"host":1}],"host":{"was": ["h", "i"]}}'),
        ('{"a":{"host":"h","port":1}}', None),
        ('{"a":"{\\"host\\":\\"h\\"}","b":"\\\\","host":1}',
         '{"a":"{\\"host\\":\\"h\\"}","b":"\\\\","host":{"was": 1}}'),
        ('{"a":"host","host ":1,"ho":"st","hos\\u0074":1,"Host":2}', None),
        ('["host",1,{"host":1}]', None),
        ('"host"', None),
        ("", None),
        ("not JSON at all: {\"host\":1}", '{not JSON'),
        ('{"host":"h"}{"host":"h"}', '{"host":{"was": "h"}}{"host":"h"}'),
        ('{"host":1,"host":2}', '{"host":{"was": 1},"host":{"was": 2}}'),
        ('{"host":"h', None),
        ('{"host":tru,"port":1}', '{"host":tru,"port":{"was": 1}}'),
        ('{"host":{"a":[1,"}"]},"port":2}', '{"host":{"was": {"a": [1, "}"]}},"port":{"was": 2}}'),
    ],
)  # fmt: skip
def test_only_fields_of_the_top_are_changed(before: str, after: str | None, size: int) -> None:
    if after == "{not JSON":  # what no JSON parser takes is of no consequence, if it passes whole
        assert passed(before.encode(), size).startswith(b"not JSON at all")
        return
    assert passed(before.encode(), size).decode() == (before if after is None else after)


KEYS = st.one_of(st.sampled_from([*NAMES, 'h"ost', "host\\", "a"]), st.text(max_size=5))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(['"host":"h"', "\\"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=12,
)


@given(
    st.dictionaries(KEYS, VALUES, max_size=6), st.booleans(), st.sampled_from([1, 2, 5, 64, 4096])
)
def test_the_rest_stays_as_it_came(value: dict[str, Any], ascii_only: bool, size: int) -> None:
    data = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    wanted = {k: {"was": v} if k in NAMES else v for k, v in value.items()}
    got = passed(data, size)
    assert json.loads(got.decode("utf-8", "surrogatepass")) == wanted
    assert not value.keys() & set(NAMES) or got != data
    assert value.keys() & set(NAMES) or got == data


def test_what_comes_before_is_not_held() -> None:
    fields = FieldChanger(NAMES, change)
    prompt = b'{"prompt":"' + b"x" * 1000
    assert fields.feed(prompt) == prompt
    assert fields.feed(b'","host":"h"') == b'","host":'
    assert fields.feed(b',"other":1,') == b""
    assert fields.feed(b'"port":1}') == b'{"was": "h"},"other":1,"port":{"was": 1}}'
    assert fields.end() == b""


def test_it_is_not_held_without_bound() -> None:
    fields = FieldChanger(NAMES, change)
    fields.feed(b'{"host":"h","prompt":"')
    with pytest.raises(HeldTooLongError, match="host, port"):
        fields.feed(b"x" * (HOLD_MAX + 1))
    fields = FieldChanger(NAMES, change)
    fields.feed(b'{"host":[')
    with pytest.raises(HeldTooLongError):
        fields.feed(b"1," * HOLD_MAX)


def test_errors_of_the_caller_come_out() -> None:
    def refuse(found: Mapping[str, Any]) -> Mapping[str, Any]:
        raise LookupError("who is that")

    with pytest.raises(LookupError, match="who is that"):
        FieldChanger(NAMES, refuse).feed(b'{"host":"h","port":1}')
