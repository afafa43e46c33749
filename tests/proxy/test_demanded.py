"""Which requests are demand, by which services are scaled: what was let through, whatever came of
it, and what found no replica. What was refused at the door is none."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from conversation import get, post, reply
from harness import Gateway
from waiting import until

from gatewayd.core.demand import Demand
from gatewayd.core.entrypoint import Entrypoint, ModelEntry
from gatewayd.core.model import Cors, HttpAuth, RateLimit, Token, TokensAuth, UnixAddress

TOKEN = Token("alice", hashlib.sha256(b"sesame").digest())
BEARER = "Authorization: Bearer sesame"


def demand(gateway: Gateway) -> Demand:
    return gateway.demand.read(0)


async def ask(gateway: Gateway, *fields: str, **more: Any) -> int:
    client = await gateway.client()
    status = (await client.ask(get(more.pop("path", "/"), *fields, **more))).status
    assert demand(gateway).running == 0
    return status


@pytest.mark.parametrize("status", ["200 OK", "404 Not Found", "500 Oops", "503 Busy"])
async def test_what_a_replica_answers_counts_whatever_it_says(
    gateway: Gateway, status: str
) -> None:
    replica = await gateway.serve()
    replica.answers = reply(b"x", status=status)
    await ask(gateway)
    counted = demand(gateway)
    assert (counted.started, counted.finished) == (1, 1)
    assert 0 <= counted.busy_ms < 5000
    assert counted.open_ms == 0


async def test_it_counts_from_its_beginning_on(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get("/"))
    wire, _ = await replica.request()
    counted = demand(gateway)
    assert (counted.started, counted.finished) == (1, 0)
    assert counted.ages_ms(int(gateway.loop.time() * 1000)) < 5000
    await wire.send(reply(b"x"))
    assert (await client.message()).status == 200
    assert demand(gateway).finished == 1


async def test_a_client_that_leaves_has_ended_it(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get("/"))
    await replica.request()
    client.close()
    await until(lambda: demand(gateway).finished == 1)


async def test_a_replica_that_is_dead_was_wanted(gateway: Gateway) -> None:
    replica = await gateway.serve()
    await replica.stop()
    assert await ask(gateway) == 502
    assert demand(gateway).finished == 1


async def test_what_found_no_replica_was_wanted(gateway: Gateway) -> None:
    await gateway.serve()
    gateway.change(replicas=())
    for _ in range(3):
        assert await ask(gateway) == 503
    assert demand(gateway).finished == 3


async def test_what_is_refused_at_the_door_is_no_demand(gateway: Gateway) -> None:
    await gateway.serve(
        auth=True,
        cors=Cors(),
        client_max_body_size=10,
        allowed_paths=("/v1/",),
        rate_limits=(RateLimit("/v1/limited", 0.01, 0),),
    )
    gateway.auth = TokensAuth((TOKEN,))
    gateway.publish()
    gateway.change(replicas=())  # not even where nobody could serve it
    client = await gateway.client()
    assert (await client.ask(post(b"x" * 11, "/v1/x", BEARER))).status == 413
    assert await ask(gateway, method="OPTIONS") == 204
    assert await ask(gateway, BEARER, path="/elsewhere") == 403
    assert await ask(gateway, path="/v1/x") == 401
    assert await ask(gateway, path="/v1/limited") == 401
    assert await ask(gateway, path="/v1/limited") == 429
    assert await ask(gateway, host="unknown.example", path="/x") == 404
    assert demand(gateway) == Demand()
    assert await ask(gateway, BEARER, path="/v1/x") == 503
    assert demand(gateway).started == 1


@pytest.mark.parametrize(("status", "given", "wanted"), [("200 OK", 503, 1), ("403 No", 403, 0)])
async def test_only_who_may_use_a_service_wakes_it(
    gateway: Gateway, status: str, given: int, wanted: int
) -> None:
    authority = await gateway.add_replica("authority")
    authority.answers = reply(b"", status=status)
    gateway.auth = HttpAuth(UnixAddress(str(authority.path)), "/check")
    await gateway.serve(auth=True)
    gateway.change(replicas=())
    for _ in range(2):  # asked, then remembered
        assert await ask(gateway, BEARER) == given
    assert demand(gateway).started == 2 * wanted
    reasons = {"no_replica": 2} if wanted else {"auth": 2}
    assert gateway.totals().rejections == reasons


async def test_a_request_to_the_model_endpoint_is_one_of_its_service(gateway: Gateway) -> None:
    gateway.entrypoints = [Entrypoint("main", "models.example", auth=False)]
    gateway.models = [ModelEntry("main", "m", "chat", 1)]
    replica = await gateway.serve(model="m")
    replica.answers = reply(b"{}")
    body = b'{"model": "m"}'
    client = await gateway.client()
    answer = await client.ask(post(body, "/chat/completions", host="models.example"))
    assert answer.status == 200
    assert demand(gateway).finished == 1
    answer = await client.ask(post(b'{"model": "n"}', "/chat/completions", host="models.example"))
    assert answer.status == 404
    assert demand(gateway).started == 1
    gateway.change(replicas=())
    answer = await client.ask(post(body, "/chat/completions", host="models.example"))
    assert answer.status == 503
    assert demand(gateway) == demand(gateway)._replace(started=2, finished=2)
