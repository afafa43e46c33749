"""What must never be shown.

Owns: hiding it from whoever prints or formats. Does not own: who may see it.
"""

from __future__ import annotations


class Secret:
    """A string that never prints: `str`, `repr` and `format` give `***`; `reveal()` gives it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(("Secret", self._value))
