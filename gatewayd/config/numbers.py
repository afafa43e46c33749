"""The numbers, booleans, durations and sizes of the file.

Owns: which YAML values they accept. Does not own: the words of durations and sizes
(config.values). Nothing is coerced, except that a string from outside (`${NAME}`) may stand
where a number or a boolean is expected.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable
from typing import Annotated

from gatewayd.config import values
from gatewayd.config.environment import Interpolated
from gatewayd.config.errors import BadValueError
from gatewayd.config.leaf import FROM_OUTSIDE, JsonSchema, Leaf

_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")


def _number(value: object) -> int | float | None:
    """The number a value is, or stands for when it came from outside."""
    if isinstance(value, Interpolated):
        try:
            return int(value) if re.fullmatch(r"[-+]?\d{1,18}", value) else float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value


def _unquoted(value: object) -> str | None:
    """A hint for the string that looks like a number: in quotes, or `1e3`, which YAML 1.1 takes for
    text."""
    try:
        number = float(value) if isinstance(value, str) else math.nan
    except ValueError:
        return None
    return f"write {number:.15g} without quotes" if math.isfinite(number) else None


def _whole(low: int, high: int | None = None) -> Leaf:
    bounds = f"of at least {low}" if high is None else f"between {low} and {high}"

    def parse(value: object) -> int:
        number = _number(value)
        if not isinstance(number, int) or number < low or (high is not None and number > high):
            hint = _unquoted(value)
            raise BadValueError(f"expected a whole number {bounds}", suggestion=hint)
        return number

    schema: JsonSchema = {"type": "integer", "minimum": low}
    if high is not None:
        schema["maximum"] = high
    return Leaf(parse, {"anyOf": [schema, FROM_OUTSIDE]})


def _workers(value: object) -> object:
    if value == "auto":
        return None
    try:
        return _WORKERS.parse(value)
    except BadValueError as error:
        text = "expected auto or a whole number between 1 and 256"
        raise BadValueError(text, suggestion=error.suggestion) from None


_WORKERS = _whole(1, 256)


def _rate(value: object) -> float:
    number = _number(value)
    if number is None or not 0 < number <= sys.float_info.max:
        raise BadValueError("expected a number above 0", suggestion=_unquoted(value))
    return float(number)


def _boolean(value: object) -> bool:
    if isinstance(value, bool):
        return value
    known = isinstance(value, str) and value.lower() in (*_TRUE, *_FALSE)
    if isinstance(value, Interpolated) and known:
        return value.lower() in _TRUE
    raise BadValueError(
        "expected true or false", suggestion="write it without quotes" if known else None
    )


def _amount(parse: Callable[[str | float], float], expected: str, *, zero: bool) -> Leaf:
    def read(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise BadValueError(expected)
        amount = parse(value)
        if not zero and not amount:
            raise BadValueError(f"{expected}, above 0")
        return amount

    units = "B|KiB|MiB|GiB" if expected is values.SIZE else "ms|s|m|h"
    return Leaf(
        read,
        {
            "anyOf": [
                {"type": "number", "minimum": 0},
                {"type": "string", "pattern": rf"^\d*\.?\d+({units})?$"},
                FROM_OUTSIDE,
            ]
        },
    )


def _size(value: str | float) -> int:
    if isinstance(value, float):
        raise BadValueError(values.SIZE)
    return values.parse_size(value)


BOOLEAN = Leaf(_boolean, {"anyOf": [{"type": "boolean"}, FROM_OUTSIDE]})
DURATION_OR_ZERO = _amount(values.parse_duration, values.DURATION, zero=True)
_DURATION = _amount(values.parse_duration, values.DURATION, zero=False)

Bool = Annotated[bool, BOOLEAN]
OptionalBool = Bool | None
Count = Annotated[int, _whole(0)]
CountAboveZero = Annotated[int, _whole(1)]
Port = Annotated[int, _whole(1, 65535)]
Rate = Annotated[
    float, Leaf(_rate, {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, FROM_OUTSIDE]})
]
Duration = Annotated[float, _DURATION]
DurationOrZero = Annotated[float, DURATION_OR_ZERO]
OptionalDuration = Duration | None
Size = Annotated[int, _amount(_size, values.SIZE, zero=False)]
Workers = Annotated[  # None: as many as the machine has cores
    int | None, Leaf(_workers, {"anyOf": [{"const": "auto"}, *_WORKERS.schema["anyOf"]]})
]
