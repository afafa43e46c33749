"""The raw tables of a tree, and in words everything that is wrong with them.

Owns: turning pydantic's errors into problems with a line, a path and what was found.
Does not own: what is right (config.schema), rules across tables (config.convert).
"""

from __future__ import annotations

import re
from collections.abc import Callable

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from gatewayd.config.environment import Interpolated
from gatewayd.config.errors import BadTableError, BadValueError
from gatewayd.config.leaf import closest
from gatewayd.config.schema import GatewayFile
from gatewayd.config.secrets import is_secret_path
from gatewayd.config.source import Misread, Node, Place
from gatewayd.config.table import Table, place_of
from gatewayd.config.values import did_you_mean

Loc = tuple[str | int, ...]
Report = Callable[[Place, str, str | None], None]

SHOWN_MAX = 60
_TAG = re.compile(r"<.*>|\[key\]")  # what pydantic adds to a loc: our union tags, a dict's key


def validate(tree: Node, report: Report) -> GatewayFile:
    """The tables of the file without what is wrong, every wrong thing reported.

    What was wrong is dropped from the tree and the rest read again, because rules across keys
    are asked only where the keys are right, and rules across tables want tables.
    """
    while True:
        try:
            return GatewayFile.model_validate(tree.python())
        except ValidationError as exc:
            wrong = []
            for error in exc.errors(include_url=False):
                loc = tuple(step for step in error["loc"] if not _is_tag(step))
                place = tree.locate(loc)
                if not _follows_from_dropped(tree, loc, error):
                    _report(tree, loc, place, error, report)
                wrong.append(place.node)
            if all(node.dropped for node in wrong):
                raise RuntimeError("what is wrong cannot be found") from exc
            for node in wrong:
                node.dropped = True
            if tree.dropped:
                return GatewayFile()


def _is_tag(step: str | int) -> bool:
    return isinstance(step, str) and bool(_TAG.fullmatch(step))


def _follows_from_dropped(tree: Node, loc: Loc, error: ErrorDetails) -> bool:
    if error["type"] == "missing":
        return tree.has_dropped(*loc)
    cause = error.get("ctx", {}).get("error")
    keys = cause.keys if isinstance(cause, BadTableError) else ()
    return any(tree.has_dropped(*loc, key) for key in keys)


def _report(tree: Node, loc: Loc, place: Place, error: ErrorDetails, report: Report) -> None:
    cause = error.get("ctx", {}).get("error")
    match error["type"], cause:
        case "extra_forbidden", _:
            report(place, "unknown key", _suggest_key(str(loc[-1]), error["input"].table))
        case "missing", _:
            report(place, "this key is required", None)
        case _, BadTableError():
            at = tree.locate((*loc, cause.at)) if cause.at else place
            report(at, cause.text, None)
        case _, BadValueError():
            report(place, *_describe(place, cause))
        case "list_type", _:
            # A list of the file holds words or tables; a number in it would be wrong again.
            is_word = isinstance(place.node.value, str) and place.node.text
            hint = f"write [{place.node.text}]" if is_word else None
            hint = None if is_secret_path(place.path) else hint
            report(place, f"expected a list, found {_found(place)}", hint)
        case "dict_type", _:
            report(place, f"expected a table, found {_found(place)}", None)
        case _:
            report(place, f"{error['msg']}, found {_found(place)}", None)


def _suggest_key(key: str, table: type[Table]) -> str | None:
    candidates = tuple(table.model_fields)
    if meant := closest(key, candidates, alike=0.8):
        return did_you_mean(meant)
    if key in GatewayFile.model_fields:
        return f"`{key}` belongs at the top"
    if place := place_of(key, table):
        another_type = place == table.place
        return (
            f"`{key}` belongs to another `type`" if another_type else did_you_mean(f"{place}.{key}")
        )
    meant = closest(key, candidates)
    return did_you_mean(meant) if meant else None


def _describe(place: Place, cause: BadValueError) -> tuple[str, str | None]:
    node = place.node
    text = f"{cause.text}, found {_found(place)}" if cause.show_found else cause.text
    secret = is_secret_path(place.path)
    if isinstance(node.value, Misread):
        reading = f"YAML reads {node.text} {node.value.why}, as {node.value.reading}"
        wish = f'"{node.text}"' if cause.wants_text else f"{node.value.reading} if that is meant"
        return text, "write it in quotes" if secret else f"{reading}: write {wish}"
    if not cause.wants_text or isinstance(node.value, (dict, list)) or node.value is None:
        hidden = secret or isinstance(node.value, Interpolated)  # a hint may repeat the value
        return text, None if hidden else cause.suggestion
    if secret:
        return text, "write it in quotes"
    if isinstance(node.value, bool) and node.text.lower() not in ("true", "false"):
        return text, f'YAML reads {node.text} as {str(node.value).lower()}: write "{node.text}"'
    return text, f'write "{node.text}"'


def _found(place: Place) -> str:
    node = place.node
    match node.value:
        case dict():
            return "a table"
        case list():
            return "a list"
        case None:
            return "nothing"
        case str():
            kind = ""
        case bool():
            kind = "the boolean "
        case _:
            kind = "the number "
    if not node.text:
        return "an empty string"
    if is_secret_path(place.path):
        return f"{kind.replace('the ', 'a ').strip() or 'something else'} (not shown)"
    text = node.text if len(node.text) <= SHOWN_MAX else node.text[:SHOWN_MAX] + "..."
    return f"{kind}`{text}`"
