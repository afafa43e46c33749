"""What a table of the file is to pydantic: known keys only, and `null` for "nothing in it".

Owns: the base of all tables. Does not own: which there are (config.schema, config.schema_service).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic.config import JsonDict

from gatewayd.config.errors import BadValueError

# For a table that can do without any key. (Those which stand in a union with null cannot say so
# once more: exactly one member of the union must hold.)
MAY_BE_NULL: JsonDict = {"type": ["object", "null"]}

_PLAIN_TABLES = ("listen", "limits", "log", "ports")


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
    """Put in place of the value of an unknown key, so that the error knows the table."""

    def __init__(self, table: type[Table]) -> None:
        self.table = table


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


def place_of(key: str, asked_in: type[Table]) -> str | None:
    """Where a key belongs that stands in the wrong table: somewhere above or below it, or in one
    of the tables at the top whose keys mean only one thing."""
    here = asked_in.place
    for table in _all_tables(Table):
        there = table.place
        related = there.startswith(here) or here.startswith(f"{there}.")
        if there and key in table.model_fields and (related or there in _PLAIN_TABLES):
            return there
    return None


def _all_tables(root: type[Table]) -> Iterator[type[Table]]:
    for table in root.__subclasses__():
        yield table
        yield from _all_tables(table)
