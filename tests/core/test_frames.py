"""Values that travel between processes arrive as they were sent."""

from __future__ import annotations

import dataclasses
import pickle

import pytest

from gatewayd.core import model, ratelimit, snapshot
from gatewayd.core.model import (
    Endpoint,
    RateLimit,
    Replica,
    RouterSpec,
    RouterTraits,
    Service,
    TokensAuth,
    UnixAddress,
    Upstream,
)
from gatewayd.core.snapshot import BridgePort, BridgeSnapshot, compile_snapshot


def a_snapshot() -> snapshot.Snapshot:
    address = UnixAddress("/run/a.sock")
    service = Service(
        "main",
        "chat",
        ("chat.example", "127.0.0.1"),
        rate_limits=(RateLimit("/", 4.0, 9),),
        router=RouterSpec("r", args=(("flag", None),)),
        replicas=(Replica("a", address),),
    )
    endpoint = Endpoint("a", address, 3, "a", reuse_s=1.5)
    upstream = Upstream((endpoint,), "random", endpoint, RouterTraits(error_header=b"x"), "steer")
    auth = TokensAuth((model.Token("ci", b"\0" * 32),))
    return compile_snapshot(7, [service], {service.key: upstream}, auth=auth)


def travelled(sent: object) -> object:
    return pickle.loads(pickle.dumps(sent, pickle.HIGHEST_PROTOCOL))  # noqa: S301


def test_a_snapshot_travels_whole() -> None:
    sent = a_snapshot()
    assert travelled(sent) == sent
    port = BridgePort(10001, Endpoint("a", UnixAddress("/a"), 1, "a"), "main/chat", 1, 2, None)
    ports = BridgeSnapshot(8, {10001: port})
    assert travelled(ports) == ports


VALUES = [
    value
    for module in (model, snapshot, ratelimit)
    for value in vars(module).values()
    if dataclasses.is_dataclass(value)
]


@pytest.mark.parametrize("cls", VALUES)
def test_fields_stand_in_the_order_of_the_constructor(cls: type) -> None:
    assert all(field.init and not field.kw_only for field in dataclasses.fields(cls))
