"""What is wrong with a gateway file, in words for the person who wrote it.

Owns: the problems of a file and the exceptions that carry them. Does not own: finding them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake. `line` is None and `path` empty where the file as a whole is meant."""

    file: str
    line: int | None
    path: str
    message: str
    suggestion: str | None = None

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        text = ": ".join(part for part in (place, self.path, self.message) if part)
        if self.suggestion:
            text = f"{text}; {self.suggestion}"
        if text.isprintable():
            return text
        # what was found in a file is not let loose on a terminal
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class ConfigError(Exception):
    """Every problem of one file, in the order of its lines."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


class BadValueError(ValueError):
    """A value that cannot be what it stands for. The text never contains the value itself, so
    that a secret in the wrong place is not printed; whoever knows the place adds what was found.
    """

    def __init__(
        self,
        text: str,
        *,
        suggestion: str | None = None,
        wants_text: bool = False,
        show_found: bool = True,
    ) -> None:
        super().__init__(text if suggestion is None else f"{text}; {suggestion}")
        self.text = text
        self.suggestion = suggestion
        self.wants_text = wants_text  # a string was expected and something else was there
        self.show_found = show_found


class BadTableError(ValueError):
    """Keys that do not fit each other. `keys` are those it was concluded from; `at` names the
    one to point at, "" the table itself."""

    def __init__(self, text: str, *, keys: tuple[str, ...], at: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.keys = keys
        self.at = at
