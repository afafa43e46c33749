"""What a table of the file is to pydantic: known keys only, and `null` for "nothing in it".

Owns: the base of all tables. Does not own: which there are (config.schema, config.schema_service).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic.config import JsonDict

from gatewayd.config.errors import BadValueError

# For a table that can do without any key. (Those which stand in a union with null cannot say so
# once more: exactly one member of the union must hold.)
MAY_BE_NULL: JsonDict = {"type": ["object", "null"]}


class Table(BaseModel):
    """A mapping with known keys. `place` is where it stands, for hints to lost keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
    place: ClassVar[str] = ""

    @model_validator(mode="before")
    @classmethod
    def _open(cls, value: object) -> object:
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise BadValueError("expected a table (`key: value` lines)")
        return {
            key: entry if key in cls.model_fields else UnknownKey(cls)
            for key, entry in value.items()
        }


class UnknownKey:
    """Put in place of the value of an unknown key, so that the error knows the table's keys."""

    def __init__(self, table: type[Table]) -> None:
        self.candidates = tuple(table.model_fields)


def text_or_table(value: object) -> str:
    """Tag of a key that is one word or a table. Tags stand in angle brackets: config.validate
    takes them out of the places that it shows."""
    return "<table>" if isinstance(value, dict) else "<text>"


def by_type(*types: str) -> Callable[[object], str]:
    """Tag of a table whose shape depends on its key `type`."""

    def tag(value: object) -> str:
        if value is None or isinstance(value, str):
            return "<text>"
        kind = value.get("type") if isinstance(value, dict) else None
        return f"<{kind}>" if kind in types else "<other>"

    return tag


def tables_with(key: str, root: type[Table] = Table) -> list[str]:
    """Where a key would belong that stands in the wrong table."""
    places = []
    for table in root.__subclasses__():
        if key in table.model_fields and table.place:
            places.append(f"{table.place}.{key}")
        places += tables_with(key, table)
    return places
