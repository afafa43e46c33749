"""A service whose router only decides: scripted router, scripted bridge, scripted replicas.

asked = await steered.question()          # what the router was sent, with its token
asked.claim("chat-a")                     # the bridge says where it arrived
... the exchange goes straight to chat-a ...
await steered.finished(asked)             # the worker lets it go, the router answers
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from conversation import Message, Replica, Wire, reply
from datagrams import Frames
from harness import Gateway
from multiplexed import Asking, Router
from waiting import until

from gatewayd.core.model import Endpoint, RouterSpec, RouterTraits, UnixAddress, Upstream
from gatewayd.core.steering import HELLO, claim, read_finish
from gatewayd.net.link import Link

PATH = "/v1/chat/completions"
TRAITS = RouterTraits(
    request_headers=((b"authorization", b"Bearer of-the-router"),),
    strip_request=frozenset({b"authorization"}),
    strip_request_prefixes=(b"x-r-",),
    strip_response=frozenset({b"x-r-error"}),
    error_header=b"x-r-error",
    unsent_errors=frozenset({b"no_targets"}),
    token_header=b"x-ask",
    routing_key_header=b"x-r-key",
    steer_paths=frozenset({PATH}),
    allowed_paths=("/v1/", "/V1/"),
)


class Bridge(Frames):
    """The other end of the worker's link."""

    def __init__(self, gateway: Gateway) -> None:
        ours, theirs = Link.pair()
        super().__init__(theirs)
        gateway.plane.asker.link(ours.detach())
        self.say(HELLO)

    def claim(self, token: bytes, replica: str) -> None:
        self.say(claim(token, replica))

    async def finished(self) -> bytes:
        """The next token that is let go."""
        value = read_finish(await self.frame())
        assert value is not None
        return value


@dataclass
class Asked:
    """A question as the router sees it, and the bridge that may claim it."""

    asking: Asking
    bridge: Bridge

    @property
    def token(self) -> bytes:
        return self.asking["x-ask"].encode()

    @property
    def body(self) -> bytes:
        return bytes(self.asking.body)

    def claim(self, replica: Replica | str) -> None:
        self.bridge.claim(self.token, replica if isinstance(replica, str) else replica.name)


class Steered:
    """The service `chat` with a router, in a gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.loop = gateway.loop
        self.router = Router("router", gateway.directory / "router.sock")
        self.bridge: Bridge
        self.replicas: list[Replica] = []
        self._wires: list[Wire] = []

    async def start(self, count: int, *, link: bool = True, **policy: Any) -> list[Replica]:
        spec = {"steer_timeout": 5.0, **policy.pop("router", {})}
        await self.router.start()
        self.gateway.replicas["router"] = self.router
        self.replicas = await self.gateway.serve_by(
            count, "chat", router=RouterSpec("scripted", **spec), **policy
        )
        self.publish()
        if link:
            await self.link()
        return self.replicas

    async def link(self) -> None:
        self.bridge = Bridge(self.gateway)
        await until(lambda: self.gateway.plane.asker.up, "the bridge was heard")

    def publish(self, **change: Any) -> None:
        """As control compiles a service whose router is up."""
        service = self.gateway.services["chat"]
        endpoints = tuple(self.gateway.endpoint(r) for r in service.replicas if not r.draining)
        index = self.gateway._indexes.setdefault("@router", len(self.gateway._indexes))
        router = Endpoint("@router", UnixAddress(str(self.router.path)), index, reuse_s=30.0)
        has = router if endpoints else None
        self.gateway.upstreams["chat"] = Upstream(
            endpoints, service.balance, has, TRAITS, "steer" if has else "direct"
        )
        self.gateway.publish() if not change else self.gateway.change(**change)

    # --- what the router sees

    async def begun(self) -> Asked:
        """The next question, of whose body the rest may still be on its way."""
        return Asked(await self.router.asked(), self.bridge)

    async def question(self) -> Asked:
        """The next question, whole."""
        asked = await self.begun()
        await asked.asking.whole()
        return asked

    async def chosen(self, replica: Replica | str) -> Asked:
        asked = await self.question()
        asked.claim(replica)
        return asked

    async def streaming(self, request: bytes, replica: Replica) -> tuple[Wire, Asked, Wire]:
        """A client that has had the first of a chunked answer from the replica that was chosen; the
        replica's end of it comes last."""
        wire = await self.client(request)
        asked = await self.chosen(replica)
        upstream, _ = await replica.request()
        await upstream.send(reply(b"", framing="chunked")[:-5] + b"1\r\na\r\n")
        await wire.upto(b"1\r\na\r\n")
        return wire, asked, upstream

    async def finished(self, asked: Asked) -> None:
        """The worker lets the router go, which then answers; nobody is counted there."""
        assert await self.bridge.finished() == asked.token
        asked.asking.answer()
        await until(lambda: not self.load, "the router has nothing in flight")

    async def client(self, request: bytes = b"") -> Wire:
        wire = await self.gateway.client()
        await wire.send(request)
        return wire

    # --- what was counted

    @property
    def load(self) -> int:
        """Requests that the router has in flight."""
        return self.gateway.load("@router")

    @property
    def outcomes(self) -> dict[str, int]:
        return self.gateway.totals().steering

    @property
    def ways(self) -> dict[str, int]:
        return self.gateway.totals().ways

    async def ended(self, **ways: int) -> None:
        """So many exchanges have ended, by these ways; nothing is in flight at a replica."""
        await until(lambda: sum(self.ways.values()) == sum(ways.values()), f"{ways} have ended")
        assert self.ways == ways
        await until(
            lambda: not any(self.gateway.load(r) for r in self.replicas), "no replica is busy"
        )

    async def settle(self) -> None:
        """No question is left open, whatever the test did."""
        plane = self.gateway.plane
        for wire in self.gateway.clients:
            wire.writer.transport.abort()
        await until(lambda: not plane.sweeper.active, "every exchange has ended")
        assert not plane.asker._open, f"still open: {plane.asker!r}"
        await self.router.stop()
        if self.replicas:
            await until(lambda: not self.load, "the router has nothing in flight")
        if hasattr(self, "bridge"):
            self.bridge.close()
        plane.asker.close()


def headers_of(message: Message) -> list[tuple[str, str]]:
    """Those that a client sent, without what each hop adds."""
    own = ("host", "content-length", "connection", "x-request-id", "x-real-ip")
    return [
        (name, value)
        for name, value in message.fields
        if name.lower() not in own and not name.lower().startswith("x-forwarded-")
    ]


BODY = b'{"model": "m", "audio": "what no router parses"}'
GONE_S = 2.0  # within which replica and router know that the client left
