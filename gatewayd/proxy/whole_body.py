"""A request's body that has arrived: as an exchange reads it, and as it is sent.

Owns: the body that needs no work. Does not own: one that still arrives (upload), what is changed
on its way (payload).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gatewayd.core.reply import LocalReply

if TYPE_CHECKING:
    from gatewayd.net.upstream import UpstreamConnection


class WholeBody:
    """One object for both sides, `Payload` and `upload.RequestBody`: it is made for each request
    that has a body. Who makes it sets `Exchange.length`."""

    __slots__ = ("_body",)

    kept: Final[tuple[bytes, ...]] = ()
    kept_size = 0

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body

    # --- as a payload

    def is_eof(self) -> bool:
        return True

    def read_nowait(self) -> bytes:
        body, self._body = self._body, b""
        return body or b""

    async def readany(self) -> bytes:
        return self.read_nowait()

    # --- on its way

    def plain(self) -> bytes | None:
        return self._body

    def whole(self) -> bytes | None:
        return self._body

    @property
    def repeatable(self) -> bool:
        return self._body is not None

    def forget(self) -> None:
        self._body = None

    async def read(self) -> bytes:
        raise AssertionError("there is nothing to wait for")

    def send(self, connection: UpstreamConnection, *, keep: bool) -> None:
        raise AssertionError("there is nothing to wait for")

    def refuse(self, reply: LocalReply) -> None:
        raise AssertionError("it has been taken")

    def stop(self) -> None: ...

    def close(self) -> None: ...


class _NoBody(WholeBody):
    """Of the requests that have none: the same for all, so there is nothing to forget."""

    __slots__ = ()

    def forget(self) -> None: ...


NO_BODY: Final = _NoBody(b"")
