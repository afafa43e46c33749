"""Requests that go to two replicas: where each is told to meet the other is made true on its way.

Owns: the meeting points, the body in which they are named. Does not own: finding the fields
(core.json_fields), what they are called (RouterTraits.peer_fields), who has which role (control).

A router takes the host of a prefill's URL for the place where a decode finds it, and writes that,
and the bootstrap port it was told, into both copies of a request. Its URLs are our ports on the
loopback, and it was told the same port as bootstrap port: so what it writes is the name of one
prefill, for which the real host and port are put here. See docs/adr/0009-pd-through-the-bridge.md.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from gatewayd.bridge.halves import OTHER_FAILED, Halves, OtherHalfFailedError
from gatewayd.core.json_fields import FieldChanger, HeldTooLongError
from gatewayd.core.model import PeerFields
from gatewayd.core.reply import LocalReply
from gatewayd.core.snapshot import BridgePort
from gatewayd.proxy.payload import BodyRefusedError, Payload
from gatewayd.proxy.whole_body import WholeBody

if TYPE_CHECKING:
    from gatewayd.proxy.exchange import Exchange

_NO_PEER: Final = LocalReply(
    503, "no_ready_replica", "The prefill replica of this request has left; try again shortly"
)
_TOO_LONG: Final = LocalReply(413, "body_too_large", "The request has too many prompts at a time")


class UnknownPeerError(LookupError):
    """A prefill that has left, or of which we know nothing."""


class Peers:
    """The prefills behind the ports of today; one table for the whole bridge."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._meet: dict[int, tuple[str, int]] = {}
        self.halves = Halves(loop)

    def __repr__(self) -> str:
        return f"<Peers {self._meet}>"

    def keep(self, ports: Iterable[BridgePort]) -> None:
        self._meet = {
            port.port: (port.peer_host, port.role.bootstrap_port)
            for port in ports
            if port.role is not None
            and port.role.bootstrap_port is not None
            and port.peer_host is not None
        }

    def changer(self, exchange: Exchange, at: BridgePort, fields: PeerFields) -> FieldChanger:
        """For one body that arrives `at` a port. UnknownPeerError and OtherHalfFailedError come
        out of it."""

        def change(found: Mapping[str, Any]) -> Mapping[str, Any]:
            ports, rooms = found.get(fields.port), found.get(fields.room)
            batch = isinstance(ports, list)  # one for each prompt
            named = ports if isinstance(ports, list) else [ports]
            met = [self._of(port) for port in named]
            told = rooms if isinstance(rooms, list) else [rooms]
            rooms = tuple(room for room in told if isinstance(room, int))
            self.halves.begin(exchange, rooms, prefills=named == [at.port] * len(named))
            hosts, real = [host for host, _ in met], [port for _, port in met]
            if not batch:
                return {fields.host: hosts[0], fields.port: real[0]}
            return {fields.host: hosts, fields.port: real}

        return FieldChanger((fields.host, fields.port, fields.room), change)

    def _of(self, port: object) -> tuple[str, int]:
        meet = self._meet.get(port) if isinstance(port, int) else None
        if meet is None:
            raise UnknownPeerError(port)
        return meet


def make_true(
    exchange: Exchange, peers: Peers, at: BridgePort, fields: PeerFields
) -> LocalReply | None:
    """Take the place of the request's body; a reply when it has arrived and cannot be sent."""
    changer = peers.changer(exchange, at, fields)
    payload = exchange.payload
    if payload.is_eof():
        try:
            body = changer.feed(payload.read_nowait()) + changer.end()
        except _REFUSED as error:
            return _refusal(error)
        exchange.payload = WholeBody(body)
        exchange.length = len(body)
        return None
    # Its length is known when the last byte has been looked at; that is not waited for.
    exchange.payload = _PassingBody(payload, changer)
    exchange.length = -1
    return None


_REFUSED: Final = (UnknownPeerError, OtherHalfFailedError, HeldTooLongError)


def _refusal(error: Exception) -> LocalReply:
    match error:
        case UnknownPeerError():
            return _NO_PEER
        case OtherHalfFailedError():
            return OTHER_FAILED
    return _TOO_LONG


class _PassingBody:
    """The same of one that is still arriving. At most what the fields need is held."""

    def __init__(self, payload: Payload, changer: FieldChanger) -> None:
        self._payload = payload
        self._changer = changer
        self._ended = False

    def is_eof(self) -> bool:
        return self._payload.is_eof()

    def read_nowait(self) -> bytes:
        """All the rest of a body that has arrived."""
        with _refusing():
            rest = self._changer.feed(self._payload.read_nowait())
            return rest + self._end()

    async def readany(self) -> bytes:
        while not self._ended:
            data = await self._payload.readany()
            with _refusing():
                passed = self._changer.feed(data) if data else self._end()
            if passed:
                return passed
        return b""

    def _end(self) -> bytes:
        self._ended = True
        return self._changer.end()


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except _REFUSED as error:
        raise BodyRefusedError(_refusal(error)) from error
