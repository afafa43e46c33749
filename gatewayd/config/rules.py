"""Rules between tables, and the places they are broken at.

Owns: `Rules`, which conversion speaks to. Does not own: the rules themselves (config.convert).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gatewayd.config.source import Node, Place
from gatewayd.core.certificate import CertificateSource
from gatewayd.core.model import RouterSpec

Loc = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """What a certificate, or a folder of them, is good for."""

    names: frozenset[str]
    faults: tuple[tuple[str, str], ...] = ()  # key of its table -> what is wrong there


CheckCertificate = Callable[[CertificateSource], CertificateFacts]
CheckRouter = Callable[[RouterSpec], list[str]]
"""What is wrong with a router: not installed, an unknown policy or flag. Nothing: it is fine."""

Report = Callable[[Place, str, str | None], None]


class Rules:
    """Says which rules a file breaks. Without a tree there is nobody to say it to: then the
    defaults are being converted, and they break none."""

    def __init__(self, tree: Node | None = None, report: Report | None = None) -> None:
        self._tree = tree
        self._report = report

    def broken(self, loc: tuple[str | int, ...], message: str, hint: str | None = None) -> None:
        if self._tree is None or self._report is None:
            raise ValueError(f"{loc}: {message}")
        self._report(self._tree.locate(loc), message, hint)

    def known(self, *loc: str | int) -> bool:
        """Whether nothing of what stands at `loc` was refused: a rule that builds on a refused
        value has nothing to say."""
        return self._tree is None or not self._tree.has_dropped(*loc)

    def path(self, *loc: str | int) -> str:
        """`loc` as the operator sees it."""
        return self._tree.locate(loc).path if self._tree is not None else str(loc)
