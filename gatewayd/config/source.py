"""A YAML file as a tree that still knows where everything stood.

Owns: syntax, duplicate keys, what YAML 1.1 makes of bare words, lines and paths.
Does not own: what keys there are (config.schema), replacing references (config.environment).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import yaml

from gatewayd.config.environment import interpolate
from gatewayd.config.errors import BadValueError, ConfigError, Problem

NODES_MAX = 200_000  # aliases of aliases grow without bound; 1,000 services are 40,000 nodes

_PREFIX = "tag:yaml.org,2002:"
_OCTAL = re.compile(r"[-+]?0[0-7_]+")


@dataclass(frozen=True, slots=True)
class Misread:
    """A bare word that YAML 1.1 takes for another number than a person would: `010`, `1:30`."""

    reading: int | float
    why: str


Scalar = str | int | float | bool | None | Misread


@dataclass(slots=True)
class Node:
    """A value and its place. A dropped one is known to be wrong and no longer looked at."""

    line: int
    value: Scalar | dict[str, Node] | list[Node]
    text: str = ""  # a scalar as it stands in the file, without quotes
    dropped: bool = False

    def python(self) -> object:
        if isinstance(self.value, dict):
            return {k: child.python() for k, child in self.value.items() if not child.dropped}
        if isinstance(self.value, list):
            return [child.python() for child in self.value if not child.dropped]
        return self.value

    def _live_items(self) -> Iterator[tuple[int, Node]]:
        assert isinstance(self.value, list)
        return ((i, child) for i, child in enumerate(self.value) if not child.dropped)

    def locate(self, loc: tuple[str | int, ...]) -> Place:
        """The place of `loc`, whose indices count what `python()` gave. It may end in a key
        that is not there (or no longer): then the place is that of the table which lacks it."""
        path, node = "", self
        for step in loc:
            if isinstance(step, int) and isinstance(node.value, list):
                index, node = list(node._live_items())[step]
                path += f"[{index}]"
            elif isinstance(node.value, dict) and isinstance(step, str):
                path += f".{step}" if path else step
                child = node.value.get(step, node)
                node = node if child.dropped else child
        return Place(path, node)

    def has_dropped(self, *loc: str | int) -> bool:
        """Whether anything of what stood at `loc` (as in `locate`) is gone."""
        node = self
        for step in loc:
            if isinstance(step, int) and isinstance(node.value, list):
                node = list(node._live_items())[step][1]
            elif isinstance(node.value, dict) and step in node.value:
                node = node.value[str(step)]
            else:
                return False
            if node.dropped:
                return True
        return node._lacks_part()

    def _lacks_part(self) -> bool:
        below: Iterable[Node] = ()
        if isinstance(self.value, (dict, list)):
            below = self.value.values() if isinstance(self.value, dict) else self.value
        return self.dropped or any(child._lacks_part() for child in below)


@dataclass(frozen=True, slots=True)
class Place:
    path: str
    node: Node


class _Loader(yaml.SafeLoader):
    """SafeLoader without dates and `=`: nothing here is a date, but a name may look like one."""


_Loader.yaml_implicit_resolvers = {
    first: [
        entry for entry in resolvers if entry[0] not in (_PREFIX + "timestamp", _PREFIX + "value")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def parse_source(text: str, file: str, env: Mapping[str, str]) -> tuple[Node, list[Problem]]:
    """The tree, and what is wrong with it so far. Raises `ConfigError` when there is no tree."""

    def fail(line: int | None, message: str, suggestion: str | None = None) -> ConfigError:
        return ConfigError((Problem(file, line, "", message, suggestion),))

    try:
        loader = _Loader(text)
        root = loader.get_single_node()
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        line = mark.line + 1 if mark else None
        raise fail(line, *_syntax(exc, text, line)) from None
    except yaml.reader.ReaderError as exc:
        line = text.count("\n", 0, exc.position) + 1
        code = exc.character if isinstance(exc.character, int) else ord(exc.character)
        raise fail(line, f"invalid YAML: character U+{code:04X} is not allowed") from None
    except RecursionError:
        raise fail(None, "invalid YAML: nested too deeply") from None
    if root is None or (root.tag == _PREFIX + "null" and not root.value):
        raise fail(
            None, "the file is empty", "the smallest useful one sets `domain` and `services`"
        )
    if not isinstance(root, yaml.MappingNode):
        kind = "a list" if isinstance(root, yaml.SequenceNode) else "a single value"
        line = root.start_mark.line + 1
        raise fail(line, f"expected keys such as `domain:` at the top level, found {kind}")
    builder = _Builder(loader, file, env)
    try:
        return builder.build(root, "", 1), builder.problems
    except RecursionError:
        raise fail(None, "invalid YAML: nested too deeply") from None


def _syntax(exc: yaml.MarkedYAMLError, text: str, line: int | None) -> tuple[str, str | None]:
    words = (exc.problem or exc.context or "cannot be read").replace("\n", " ")
    there = text.splitlines()[line - 1] if line and line <= len(text.splitlines()) else ""
    suggestion = None
    if "'\\t'" in words or there.startswith("\t"):
        suggestion = "indent with spaces, not with tabs"
    elif "a single document" in (exc.context or ""):
        words, suggestion = "a second document begins here", "remove the `---`"
    elif re.search(r":\s*\*", there):
        suggestion = "a value that begins with `*` stands in quotes"
    elif "${" in there and re.search(r"[{\[].*\$\{", there):
        suggestion = "${...} stands in quotes between braces or brackets"
    elif "[::" in there:
        suggestion = "an address in brackets stands in quotes"
    elif there.count(": ") > 1 or "mapping values are not allowed" in words:
        suggestion = "a value that contains `: ` stands in quotes; is a line indented too far?"
    elif exc.context and exc.context_mark and exc.context_mark.line + 1 != line:
        words = f"{words} ({exc.context} of line {exc.context_mark.line + 1})"
    return f"invalid YAML: {words}", suggestion


class _Builder:
    def __init__(self, loader: _Loader, file: str, env: Mapping[str, str]) -> None:
        self.problems: list[Problem] = []
        self._loader = loader
        self._file = file
        self._env = env
        self._open: list[yaml.Node] = []  # the collections we are inside of
        self._count = 0

    def _report(self, line: int, path: str, message: str, suggestion: str | None = None) -> None:
        self.problems.append(Problem(self._file, line, path, message, suggestion))

    def build(self, node: yaml.Node, path: str, line: int) -> Node:
        self._count += 1
        if self._count > NODES_MAX:
            problem = Problem(self._file, line, path, f"more than {NODES_MAX} values")
            raise ConfigError((problem,))
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path, line)
        if any(node is outer for outer in self._open):
            self._report(line, path, "an alias cannot stand inside of what it names")
            return Node(line, None, dropped=True)
        self._open.append(node)
        try:
            if isinstance(node, yaml.SequenceNode):
                return Node(
                    line,
                    [
                        self.build(item, f"{path}[{i}]", item.start_mark.line + 1)
                        for i, item in enumerate(node.value)
                    ],
                )
            assert isinstance(node, yaml.MappingNode)
            return Node(line, self._mapping(node, path))
        finally:
            self._open.pop()

    def _mapping(self, node: yaml.MappingNode, path: str) -> dict[str, Node]:
        merged: dict[str, Node] = {}
        own: dict[str, Node] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == _PREFIX + "merge":
                self._merge(value_node, path, line, merged)
                continue
            key = self._key(key_node, path, line)
            if key is None:
                continue
            below = f"{path}.{key}" if path else key
            if key in own:
                self._report(line, below, f"this key stands on line {own[key].line} already")
                continue
            own[key] = self.build(value_node, below, line)
        return {**merged, **own}

    def _key(self, node: yaml.Node, path: str, line: int) -> str | None:
        if isinstance(node, yaml.ScalarNode) and node.tag == _PREFIX + "str":
            return str(node.value)
        if isinstance(node, yaml.ScalarNode):
            hint = f'write "{node.value}"' if node.value else None
            self._report(line, path, f"the key `{node.value}` is not a string for YAML", hint)
        else:
            self._report(line, path, "a key is a string, found a list or a table")
        return None

    def _merge(self, node: yaml.Node, path: str, line: int, into: dict[str, Node]) -> None:
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        for source in sources:
            if not isinstance(source, yaml.MappingNode):
                self._report(line, f"{path}.<<" if path else "<<", "expected a table to merge")
                continue
            built = self.build(source, path, line).value
            if isinstance(built, dict):
                for key, child in built.items():
                    into.setdefault(key, child)  # YAML: the first of several sources wins

    def _scalar(self, node: yaml.ScalarNode, path: str, line: int) -> Node:
        made = Node(line, None, node.value)
        kind = node.tag.removeprefix(_PREFIX)
        try:
            match kind:
                case "str":
                    made.value = interpolate(node.value, self._env)
                case "bool":
                    made.value = self._loader.construct_yaml_bool(node)
                case "int" | "float":
                    made.value = self._number(node, kind)
                case "null":
                    made.value = None
                case _:
                    raise BadValueError(
                        f"the YAML tag `{node.tag}` means nothing here", show_found=False
                    )
        except BadValueError as exc:
            self._report(line, path, exc.text, exc.suggestion)
            made.dropped = True
        except (ValueError, KeyError, IndexError, OverflowError):
            self._report(line, path, f"expected {_KINDS[kind]} after the tag")
            made.dropped = True
        return made

    def _number(self, node: yaml.ScalarNode, kind: str) -> int | float | Misread:
        make = (
            self._loader.construct_yaml_int if kind == "int" else self._loader.construct_yaml_float
        )
        reading: int | float = make(node)
        if ":" in node.value:
            return Misread(reading, "in base 60")
        if kind == "int" and _OCTAL.fullmatch(node.value):
            return Misread(reading, "in base 8")
        return reading


_KINDS = {"bool": "true or false", "int": "a whole number", "float": "a number", "null": "nothing"}
