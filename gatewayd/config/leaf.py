"""What a single value of the file is to pydantic: read by one function, described by one schema.

Owns: `Leaf` and the ways to build one. Does not own: which leaves there are (config.numbers,
config.words), the tables they stand in (config.schema).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from gatewayd.config.errors import BadValueError
from gatewayd.config.values import did_you_mean

_T = TypeVar("_T")
JsonSchema = dict[str, Any]

FROM_OUTSIDE: JsonSchema = {"type": "string", "pattern": r"\$\{|^file:/"}


@dataclass(frozen=True, eq=False)  # by identity: types that hold one must be hashable
class Leaf:
    """Annotation: the value is read by `parse` alone, which raises `BadValueError`."""

    parse: Callable[[Any], object]
    schema: Mapping[str, Any]

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.parse)

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: object) -> JsonSchema:
        return dict(self.schema)


@dataclass(frozen=True, eq=False)
class Listed:
    """Annotation of a list: null is an empty one, and with `one` a single entry needs no list.

    A key whose entries are all commented out is null for YAML; nobody means anything else by it.
    """

    one: bool = False

    def _open(self, value: object) -> object:
        if value is None:
            return []
        return [value] if self.one and not isinstance(value, list) else value

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._open, handler(source))

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchema:
        array = handler(core)
        nullable = {**array, "type": ["array", "null"]}
        return {"anyOf": [nullable, array["items"]]} if self.one else nullable


LIST = Listed()
ONE_OR_LIST = Listed(one=True)


def or_null(leaf: Leaf) -> Leaf:
    return Leaf(
        lambda value: None if value is None else leaf.parse(value),
        {"anyOf": [dict(leaf.schema), {"type": "null"}]},
    )


def string(value: object, expected: str = "expected a string") -> str:
    """A string of the file as it is: not empty, on one line."""
    if not isinstance(value, str):
        raise BadValueError(expected, wants_text=True)
    if not value:
        raise BadValueError(expected)
    if not value.isprintable():
        raise BadValueError(f"{expected} without control characters", show_found=False)
    return value


def text_leaf(parse: Callable[[str], object], expected: str) -> Leaf:
    def read(value: object) -> object:
        if isinstance(value, int) and not isinstance(value, bool):
            try:  # would it do in quotes, or does the parser know better?
                parse(str(value))
            except BadValueError as exc:
                raise BadValueError(expected, suggestion=exc.suggestion) from None
        return parse(string(value, expected))

    return Leaf(read, {"type": "string", "minLength": 1})


def closest(word: str, candidates: tuple[str, ...], *, alike: float = 0.65) -> str | None:
    """The candidate that was probably meant; `rsp` and `rps` are 0.67 alike."""
    plain = {candidate.lower().replace("-", "_"): candidate for candidate in candidates}
    found = difflib.get_close_matches(word.lower().replace("-", "_"), plain, n=1, cutoff=alike)
    return plain[found[0]] if found else None


def one_of(*words: str, also: str | None = None) -> Leaf:
    """One of these words; `also` says what else the key may be."""
    choice = [*words, also] if also else list(words)
    expected = f"expected {' or '.join(filter(None, (', '.join(choice[:-1]), choice[-1])))}"

    def parse(value: object) -> str:
        if not isinstance(value, str):
            raise BadValueError(expected)  # none of the words is one that YAML misreads
        text = string(value, expected)
        if text not in words:
            meant = closest(text, words)
            raise BadValueError(expected, suggestion=did_you_mean(meant) if meant else None)
        return text

    return Leaf(parse, {"anyOf": [{"enum": list(words)}, FROM_OUTSIDE]})
