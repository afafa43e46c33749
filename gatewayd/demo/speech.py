"""What a demo replica says: honest words about the prompt, cut into pieces as a model would be.

Owns: the text, the pieces ("tokens" are words here), stop sequences, the reason a text ended.
Does not own: when a piece is sent (demo.replica), how it is wrapped (demo.wire).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_PIECE = re.compile(r"\s*\S+|\s+\Z")
_QUOTED_WORDS = 40  # a longer prompt is quoted in part: the echo of a book would last an hour


def pieces(text: str) -> list[str]:
    """Split so that joining gives the text back; each piece counts as one token."""
    return _PIECE.findall(text)


@dataclass(frozen=True, slots=True)
class Ask:
    """One generation. `max_tokens` None: until the text ends by itself."""

    prompt: str
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False  # go on until max_tokens, as engines do for measurements

    @property
    def prompt_tokens(self) -> int:
        return len(pieces(self.prompt))


def _script(name: str, ask: Ask) -> Iterator[str]:
    words = pieces(ask.prompt)
    quote = "".join(words[:_QUOTED_WORDS]).strip()
    rest = len(words) - _QUOTED_WORDS
    yield from pieces(
        f"This is gatewayd's demo replica {name}. No language model runs here; "
        f"I only repeat what I am told. You sent {len(words)} words: “{quote}”"
        + (f" and {rest} more." if rest > 0 else "")
    )
    if ask.ignore_eos:
        for number in itertools.count(1):
            yield f" {number}"


@dataclass(slots=True, eq=False)
class Speech:
    """Iterate to hear it, one item a token; afterwards `finish_reason` says why it ended.

    With stop sequences the end of what was made so far is held back while it could still
    become one: a client never sees a part of a sequence that then turns out to be a stop. So an
    item may be empty.
    """

    name: str
    ask: Ask
    tokens: int = 0
    finish_reason: str | None = None  # stop | length
    matched: str | None = None  # the stop sequence that ended it
    _held: str = field(default="", repr=False)

    def __iter__(self) -> Iterator[str]:
        for piece in _script(self.name, self.ask):
            self.tokens += 1
            self._held += piece
            self._look_for_stop()
            if self.finish_reason is None and self.tokens == self.ask.max_tokens:
                self.finish_reason = "length"
            if self.finish_reason is not None:
                break
            yield self._let_out()
        self.finish_reason = self.finish_reason or "stop"
        yield self._held

    def _look_for_stop(self) -> None:
        found = [(at, s) for s in self.ask.stop if (at := self._held.find(s)) >= 0]
        if found:
            at, self.matched = min(found)
            self._held = self._held[:at]
            self.finish_reason = "stop"

    def _let_out(self) -> str:
        keep = max((_overlap(self._held, s) for s in self.ask.stop), default=0)
        end = len(self._held) - keep
        out, self._held = self._held[:end], self._held[end:]
        return out


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` are the beginning of `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
