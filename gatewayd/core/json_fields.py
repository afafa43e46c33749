"""Changing the values of some top-level fields of a JSON object while it passes, piece by piece.

Owns: finding the fields in bytes, holding back what cannot be decided yet. Does not own: what the
new values are (the caller), reading and sending (bridge.peers).

Nothing else is parsed, and nothing else is written anew: what looks like such a field inside a
string or a nested object is left alone, and every other byte stays as it came. Strings and nested
values are skipped by regular expressions, so a prompt costs no step of the interpreter per byte.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

# What is held at most from the first of the fields to the last; a list has an entry per prompt.
HOLD_MAX: Final = 1024 * 1024

_QUOTE, _BACKSLASH, _COMMA, _COLON = b'"\\,:'
_OPENING: Final = frozenset(b"{[")
_KEY_MAX: Final = 64

# Not possessive, which would remember less of long prompts: in CPython 3.11.2 a possessive group in
# a possessive group, whose last round fails, leaves the match too far on.
_STRING: Final = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)
_TOP: Final = re.compile(rb'["{}\[\],:]')
# Below the top whole strings are stepped over, up to a bracket or a string that is not whole yet.
_BELOW: Final = re.compile(rb'[^"{}\[\]]*(?:"[^"\\]*(?:\\.[^"\\]*)*"[^"{}\[\]]*)*', re.DOTALL)

Change = Callable[[Mapping[str, Any]], Mapping[str, Any]]


class HeldTooLongError(ValueError):
    """The fields stand so far apart, or are so long, that they are not waited for."""


class FieldChanger:
    """`change` is given the fields that were found, once all `names` were, or at the end; what it
    returns takes their place. Its errors come out of `feed` and `end`."""

    def __init__(self, names: Collection[str], change: Change) -> None:
        self._names = frozenset(name.encode() for name in names)
        self._change = change
        self._passing = False  # nothing is looked for (any more): no object, or its end
        self._depth = 0
        self._in_string = False
        self._escaped = False  # the last piece ended in a backslash
        self._at_key = False  # the next string at the top is a key
        self._key: bytearray | None = None  # while one is read, and until its colon
        self._name: bytes | None = None  # of the field whose value is being read
        self._value = bytearray()
        self._raw: dict[bytes, bytes] = {}  # found, and not changed yet
        self._held: list[bytes | None] = []  # None: the next of `_raw` belongs here
        self._held_size = 0

    def feed(self, data: bytes) -> bytes:
        """What can be passed on now."""
        if self._passing:
            return data
        out: list[bytes] = []
        size = len(data)
        pos = 0
        taken = 0  # what stands before has been emitted, or is kept
        while pos < size:
            if self._escaped:
                self._escaped = False
                pos += 1
            elif self._in_string:
                end = self._string(data, pos)
                if self._key is not None and len(self._key) <= _KEY_MAX:
                    self._key += data[pos : min(end, pos + _KEY_MAX)]
                pos = end
                if pos < size:
                    self._in_string = False
                    pos += 1
            elif self._depth > 1:
                pos = self._below(data, pos)
            else:
                found = _TOP.search(data, pos)
                if found is None:
                    break
                pos = found.start()
                if self._name is not None and self._depth == 1 and data[pos] in b",}":
                    self._value += data[taken:pos]
                    taken = pos
                    self._emit_value(out)
                if self._at_top(data[pos]):
                    self._emit(data[taken : pos + 1], out)
                    taken = pos + 1
                pos += 1
                if self._passing:
                    break
        rest = data[taken:]
        if self._name is not None:
            self._value += rest
            self._bound()
        else:
            self._emit(rest, out)
        if self._passing:
            self._settle(out)
        return b"".join(out)

    def end(self) -> bytes:
        """What was still held."""
        out: list[bytes] = []
        if self._name is not None:  # it breaks off within the value
            self._name = None
            self._emit(bytes(self._value), out)
        self._settle(out)
        self._passing = True
        return b"".join(out)

    # --- reading

    def _string(self, data: bytes, pos: int) -> int:
        """Where the string ends that `pos` is in: its quote, or the end of the piece."""
        match = _STRING.match(data, pos)
        assert match is not None  # it matches nothing at least
        end = match.end()
        if end < len(data) and data[end] == _BACKSLASH:  # the last byte
            self._escaped = True
            end += 1
        return end

    def _below(self, data: bytes, pos: int) -> int:
        match = _BELOW.match(data, pos)
        assert match is not None
        pos = match.end()
        if pos < len(data):
            byte = data[pos]
            if byte == _QUOTE:
                self._in_string = True
            else:
                self._depth += 1 if byte in _OPENING else -1
            pos += 1
        return pos

    def _at_top(self, byte: int) -> bool:
        """One structural byte outside or at the top of the object; whether the value of a wanted
        field begins behind it."""
        if self._depth == 0:
            self._passing = byte != b"{"[0]
            self._depth, self._at_key = 1, True
        elif byte == _QUOTE:
            self._in_string = True
            self._key = bytearray() if self._at_key else None
            self._at_key = False
        elif byte == _COLON:
            key, self._key = self._key, None
            if key is not None and bytes(key) in self._names:
                self._name = bytes(key)
                return True
        elif byte == _COMMA:
            self._at_key, self._key = True, None
        elif byte in _OPENING:
            self._depth += 1
        else:
            self._passing = True
        return False

    # --- writing

    def _emit(self, data: bytes, out: list[bytes]) -> None:
        if not data:
            return
        if self._held:
            self._held.append(data)
            self._held_size += len(data)
            self._bound()
        else:
            out.append(data)

    def _emit_value(self, out: list[bytes]) -> None:
        assert self._name is not None
        if self._name in self._raw:  # twice: what is known of the first must do
            self._settle(out)
        self._raw[self._name] = bytes(self._value)
        self._held.append(None)
        self._held_size += len(self._value)
        self._name = None
        self._value.clear()
        self._bound()
        if self._raw.keys() == self._names:
            self._settle(out)

    def _settle(self, out: list[bytes]) -> None:
        if not self._held:
            return
        raw, self._raw = self._raw, {}
        held, self._held = self._held, []
        self._held_size = 0
        found = {}
        for name, text in raw.items():
            try:
                found[name.decode()] = json.loads(text)
            except ValueError:
                continue  # not JSON: whoever reads the whole will say so
        new = self._change(found)
        values = iter(
            json.dumps(new[name.decode()]).encode() if name.decode() in new else text
            for name, text in raw.items()
        )
        out.extend(next(values) if piece is None else piece for piece in held)

    def _bound(self) -> None:
        if self._held_size + len(self._value) > HOLD_MAX:
            names = b", ".join(sorted(self._names)).decode()
            raise HeldTooLongError(f"more than {HOLD_MAX} bytes from first to last of {names}")
