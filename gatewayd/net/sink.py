"""Who is told what an upstream connection reads.

Owns: the contract between a connection (net.upstream) and what it carries an exchange for.
Does not own: either side of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from gatewayd.core.retry import Failure

if TYPE_CHECKING:
    from gatewayd.net.upstream import UpstreamConnection

BodyPath = tuple[bytes, Callable[[bytes], None]]


class Sink(Protocol):
    """Who is told what a connection read. Body bytes do not pass it: it says where they go."""

    def response_started(self, connection: UpstreamConnection) -> BodyPath:
        """The final head is in `connection.head`; answers with what goes before the body (it
        leaves in one write with the first of it) and where the body goes."""

    def first_byte(self) -> None: ...

    def response_ended(self, connection: UpstreamConnection) -> None: ...

    def response_failed(
        self, connection: UpstreamConnection, failure: Failure, detail: str
    ) -> None: ...

    def tunnel_closed(self, connection: UpstreamConnection) -> None: ...
