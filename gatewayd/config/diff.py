"""What a reload would change, in the words of the file.

Owns: the comparison of two configurations, and which keys cannot change while running.
Does not own: applying it (control).
"""

from __future__ import annotations

from dataclasses import dataclass

from gatewayd.config.model import Config
from gatewayd.config.render import to_tables
from gatewayd.core.secret import Secret

FIXED = ("listen", "workers", "state_dir", "run_dir", "ports")  # bound or created at start

_IDENTITY = {"services": "name", "tokens": "name", "replicas": "id", "rate_limits": "prefix"}
_ABSENT = object()


@dataclass(frozen=True, slots=True)
class ConfigDiff:
    """One line for each key. `changes` can be applied now, `refused` only by a restart."""

    changes: tuple[str, ...]
    refused: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """Nothing differs, not even what would be refused."""
        return not self.changes and not self.refused


def diff(old: Config, new: Config) -> ConfigDiff:
    before, after = to_tables(old), to_tables(new)
    changes: list[str] = []
    refused: list[str] = []
    for key in dict.fromkeys((*before, *after)):
        lines: list[str] = []
        _compare(key, before.get(key, _ABSENT), after.get(key, _ABSENT), lines)
        if key in FIXED:
            refused += [f"{line}; restart gatewayd to change it" for line in lines]
        else:
            changes += lines
    return ConfigDiff(tuple(changes), tuple(refused))


def _compare(path: str, old: object, new: object, lines: list[str]) -> None:
    if old == new:
        return
    identity = _IDENTITY.get(path.rpartition(".")[2])
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys((*old, *new)):
            _compare(f"{path}.{key}", old.get(key, _ABSENT), new.get(key, _ABSENT), lines)
    elif identity and isinstance(old, list) and isinstance(new, list):
        before = {entry[identity]: entry for entry in old}
        after = {entry[identity]: entry for entry in new}
        lines += [f"{path}: {name} removed" for name in before if name not in after]
        lines += [f"{path}: {name} added" for name in after if name not in before]
        for name in (name for name in before if name in after):
            below = f"{path}[{name}]" if identity == "prefix" else f"{path}.{name}"
            _compare(below, before[name], after[name], lines)
    elif isinstance(old, Secret) and isinstance(new, Secret):
        lines.append(f"{path}: changed")
    else:
        lines.append(f"{path}: {_shown(old)} -> {_shown(new)}")


def _shown(value: object) -> str:
    """Short YAML without its quotes."""
    match value:
        case dict():
            return f"{{{', '.join(f'{key}: {_shown(part)}' for key, part in value.items())}}}"
        case list():
            return f"[{', '.join(_shown(part) for part in value)}]"
        case bool():
            return str(value).lower()
        case None:
            return "null"
    return "(nothing)" if value is _ABSENT else str(value)
