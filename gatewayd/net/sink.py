"""Who is told what an upstream connection reads.

Owns: the contract between a connection (net.upstream) and what it carries an exchange for.
Does not own: either side of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from gatewayd.core.retry import Failure

if TYPE_CHECKING:
    from gatewayd.net.upstream import UpstreamConnection


class Receiver(Protocol):
    """Who an answer is passed on to."""

    def send(self, data: bytes) -> None:
        """All of it. May wait for the end of this turn of the loop."""

    def stream(self) -> Callable[[bytes], None]:
        """The rest will come piece by piece, by what this returns."""
        ...


BodyPath = tuple[bytes, Receiver]


class Sink(Protocol):
    """Who is told what a connection read. Body bytes do not pass it: it says where they go."""

    def response_started(self, connection: UpstreamConnection) -> BodyPath:
        """The final head is in `connection.head`; answers with what goes before the body (it
        leaves in one write with the first of it) and who gets both."""

    def first_byte(self) -> None:
        """Of a body that comes piece by piece."""

    def response_ended(self, connection: UpstreamConnection) -> None:
        """If there was no first byte, the body has come in one piece; `received` is its size."""

    def response_failed(
        self, connection: UpstreamConnection, failure: Failure, detail: str
    ) -> None: ...

    def tunnel_closed(self, connection: UpstreamConnection) -> None: ...


class _Nowhere:
    """Takes what nobody waits for."""

    def send(self, data: bytes) -> None: ...

    def stream(self) -> Callable[[bytes], None]:
        return self.send


NOWHERE: Final = _Nowhere()
