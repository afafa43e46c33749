"""Faults of our own in the middle of an exchange: it ends at once, it is counted, nothing is left,
and the requests beside it do not notice."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from conversation import Cut, Message, get, post, reply
from harness import Gateway
from steered import BODY, PATH, Steered

from gatewayd.core.entrypoint import Entrypoint
from gatewayd.core.model import HttpAuth, UnixAddress, Upstream
from gatewayd.net.authority import Authority
from gatewayd.net.pool import Pool
from gatewayd.proxy.deadlines import Deadlines
from gatewayd.proxy.models import ModelCall
from gatewayd.proxy.served import Served
from gatewayd.proxy.upload import RequestBody


@pytest.fixture(autouse=True)
def said(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """The operator reads of it once."""
    yield
    errors = [r for r in caplog.get_records("call") if r.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert errors[0].exc_info
    caplog.get_records("call").remove(errors[0])


def fail(*_: Any, **__: Any) -> Any:
    raise RuntimeError("a fault of the gateway")


async def fail_later(*_: Any, **__: Any) -> Any:
    fail()


def ended(gateway: Gateway) -> list[Any]:
    """Collects what the access log is given."""
    lines: list[Any] = []
    gateway.edge.access_log.write = lines.extend  # type: ignore[method-assign]
    return lines


def is_internal(answer: Message) -> bool:
    return answer.status == 500 and b"internal_error" in answer.body and answer.closes


async def test_while_connecting(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    replica = await gateway.serve()
    replica.answers = reply(b"fine")
    lines = ended(gateway)
    with monkeypatch.context() as patched:
        patched.setattr(Pool, "connect", fail_later)
        client = await gateway.client()
        assert is_internal(await client.ask(post(b"{}")))
    assert await client.gone() == b""
    assert gateway.load(replica) == 0
    assert not gateway.plane.sweeper.active
    client = await gateway.client()
    assert (await client.ask(post(b"{}"))).body == b"fine"
    assert gateway.totals().codes == {500: 1, 200: 1}
    assert [line.closed_by for line in lines] == ["gateway", "-"]


@pytest.mark.parametrize("begun", [False, True], ids=["before the answer", "in the answer"])
async def test_in_an_upload(gateway: Gateway, monkeypatch: pytest.MonkeyPatch, begun: bool) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(post(b"x" * 1000)[:-500])
    wire = await replica.accept()
    await wire.upto(b"\r\n\r\n" + b"x" * 500)
    if begun:
        await wire.send(reply(b"0123456789")[:-5])
        await client.upto(b"01234")
    monkeypatch.setattr(RequestBody, "framed", fail)
    await client.send(b"x" * 100)
    if begun:
        with pytest.raises(Cut):
            await client.exactly(5)
    else:
        assert is_internal(await client.message())
    await wire.gone()
    assert gateway.totals().codes == {200 if begun else 500: 1}


async def test_while_a_router_is_asked(steered: Steered, monkeypatch: pytest.MonkeyPatch) -> None:
    await steered.start(1)
    client = await steered.client(post(BODY, PATH)[:-3])
    monkeypatch.setattr(RequestBody, "read", fail_later)
    await client.send(BODY[-3:-1])
    assert is_internal(await client.message())


async def test_while_a_replica_is_waited_for(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = await gateway.serve()
    gateway.upstreams["chat"] = Upstream((), coming=True)
    gateway.publish()
    monkeypatch.setattr("gatewayd.proxy.holding.arrived", fail_later)
    client = await gateway.client()
    assert is_internal(await client.ask(post(b"{}")))
    assert replica.untouched


async def test_while_an_authority_is_asked(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway.auth = HttpAuth(UnixAddress("/nowhere"), "/check")
    replica = await gateway.serve(auth=True)
    monkeypatch.setattr(Authority, "ask", fail_later)
    client = await gateway.client()
    assert is_internal(await client.ask(get("/", "Authorization: Bearer t")))
    assert replica.untouched


async def test_at_the_model_endpoint(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway.entrypoints = [Entrypoint("main", "models.example", auth=False)]
    gateway.publish()
    monkeypatch.setattr(ModelCall, "_go_on", fail_later)
    client = await gateway.client()
    answer = await client.ask(get("/v1/models", host="models.example"))
    assert is_internal(answer)
    assert answer["Content-Type"] == "application/json"


@pytest.mark.parametrize("requests", [1, 2])
async def test_in_the_choice_of_a_replica(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, requests: int
) -> None:
    """Of the last of them: it is begun by the end of the one before."""
    replica = await gateway.serve()
    client = await gateway.client()
    if requests == 1:
        monkeypatch.setattr(Served, "choose", fail)
    await client.send(post(b"{}") * requests)
    if requests == 2:
        wire, _ = await replica.request()
        monkeypatch.setattr(Served, "choose", fail)
        await wire.send(reply(b"fine"))
        assert (await client.message()).body == b"fine"
    assert is_internal(await client.message())
    assert gateway.totals().codes == {500: 1} | ({200: 1} if requests == 2 else {})


async def test_in_its_deadlines(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    monkeypatch.setattr(Deadlines, "check", fail)
    await client.send(post(b"{}"))
    wire, _ = await replica.request()
    assert is_internal(await client.message())
    await wire.gone()
