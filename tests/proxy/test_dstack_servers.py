"""Tokens that a dstack server judges."""

from __future__ import annotations

import asyncio
import socket

import pytest
from asking import BEARER, ask
from conversation import Replica, get, reply
from harness import Gateway

from gatewayd.core.model import DstackAuth

# --- a dstack server


async def server_at(gateway: Gateway, name: str = "one") -> Replica:
    """A server behind a socket of the directory, which says yes until it is told otherwise."""
    folder = gateway.directory / "servers"
    folder.mkdir(exist_ok=True)
    server = gateway.replicas[name] = Replica(name, folder / f"{name}.sock")
    await server.start()
    server.answers = reply(b"{}")
    return server


async def guarded_by_servers(gateway: Gateway, **auth: object) -> Replica:
    """The replica of `chat`; `other` is a service of the same project."""
    gateway.auth = DstackAuth(str(gateway.directory / "servers"), **auth)  # type: ignore[arg-type]
    replica = await gateway.serve(auth=True)
    replica.answers = reply(b"in")
    other = await gateway.serve("other", auth=True)
    other.answers = reply(b"other")
    return replica


async def test_a_dstack_server_is_asked_for_the_project(gateway: Gateway) -> None:
    server = await server_at(gateway)
    replica = await guarded_by_servers(gateway)
    assert (await ask(gateway)).status == 200
    (question,) = server.requests
    assert question.start == "POST /api/projects/main/get HTTP/1.1"
    assert question["Authorization"] == "Bearer sesame"
    assert "Authorization" not in replica.requests[0]


@pytest.mark.parametrize(
    ("status", "given"),
    [
        ("200 OK", 200),
        ("403 Forbidden", 403),
        ("401 Unauthorized", 403),
        ("404 Not Found", 503),
        ("500 Oops", 503),
    ],
)
async def test_its_clients_know_403_only(gateway: Gateway, status: str, given: int) -> None:
    server = await server_at(gateway)
    server.answers = reply(b"", status=status)
    replica = await guarded_by_servers(gateway)
    for _ in range(2):
        answer = await ask(gateway)
        assert answer.status == given
        assert "WWW-Authenticate" not in answer
    assert bool(replica.requests) is (given == 200)
    # Yes and no are kept, errors are not.
    assert len(server.requests) == (2 if given == 503 else 1)


@pytest.mark.parametrize("fields", [(), ("Authorization: Basic eA==",), ("Authorization: Bearer",)])
async def test_no_token_is_403_too(gateway: Gateway, fields: tuple[str, ...]) -> None:
    server = await server_at(gateway)
    await guarded_by_servers(gateway)
    client = await gateway.client()
    answer = await client.ask(get("/", *fields))
    assert (answer.status, "WWW-Authenticate" in answer) == (403, False)
    assert server.untouched
    assert gateway.totals().rejections == {"auth": 1}


async def test_services_of_a_project_share_its_word(gateway: Gateway) -> None:
    server = await server_at(gateway)
    await guarded_by_servers(gateway)
    client = await gateway.client()
    assert (await client.ask(get("/", BEARER))).body == b"in"
    assert (await client.ask(get("/", BEARER, host="other.example"))).body == b"other"
    assert len(server.requests) == 1


async def test_many_services_at_once_ask_once(gateway: Gateway) -> None:
    server = await server_at(gateway)
    server.answers = None
    await guarded_by_servers(gateway)
    hosts = ["chat.example", "other.example"] * 5
    clients = [await gateway.client() for _ in hosts]
    for client, host in zip(clients, hosts, strict=True):
        await client.send(get("/", BEARER, host=host))
    wire, _ = await server.request()
    await wire.nothing()
    await wire.send(reply(b"{}"))
    for client in clients:
        assert (await client.message()).status == 200
    assert len(server.wires) == 1


async def test_connections_to_a_server_are_kept(gateway: Gateway) -> None:
    server = await server_at(gateway)
    await guarded_by_servers(gateway)
    for i in range(5):
        assert (await ask(gateway, f"Authorization: Bearer token{i}")).status == 200
    assert len(server.requests) == 5
    assert len(server.wires) == 1


async def test_any_server_that_lives_is_asked(gateway: Gateway) -> None:
    await guarded_by_servers(gateway)
    answer = await ask(gateway)  # not even the directory is there
    assert answer.status == 503
    assert int(answer["Retry-After"]) > 0
    assert b"auth_unavailable" in answer.body
    living = await server_at(gateway, "living")
    for name in "abc":
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(living.path.with_name(f"{name}.sock")))
    living.path.with_name("plain.sock").touch()
    for i in range(8):
        assert (await ask(gateway, f"Authorization: Bearer token{i}")).status == 200
    assert len(living.requests) == 8


async def test_a_server_that_hangs_does_not_keep_another_from_answering(gateway: Gateway) -> None:
    for name in "ab":
        (await server_at(gateway, name)).answers = None
    await server_at(gateway, "living")
    await guarded_by_servers(gateway)
    started = gateway.loop.time()
    assert (await ask(gateway)).status == 200
    assert gateway.loop.time() - started < 4.0


async def test_a_server_that_breaks_off_is_passed_over(gateway: Gateway) -> None:
    broken = await server_at(gateway, "broken")
    broken.answers = b"nonsense\r\n\r\n"
    await server_at(gateway, "living")
    await guarded_by_servers(gateway)
    for i in range(6):
        assert (await ask(gateway, f"Authorization: Bearer token{i}")).status == 200


async def test_while_no_server_answers_who_was_let_in_stays_in(gateway: Gateway) -> None:
    server = await server_at(gateway)
    await guarded_by_servers(gateway, cache=0.0, timeout=0.3)
    assert (await ask(gateway)).status == 200
    server.answers = None  # it hangs
    started = gateway.loop.time()
    for _ in range(20):  # only the first of them waits for it
        assert (await ask(gateway)).status == 200
    assert gateway.loop.time() - started < 1.5
    assert gateway.totals().auth_stale == 20
    assert (await ask(gateway, "Authorization: Bearer unknown")).status == 503
    await server.stop()
    assert (await ask(gateway)).status == 200
    again = await server_at(gateway, "again")
    again.answers = reply(b"", status="403 Forbidden")
    for _ in range(300):  # it is asked again after a second, and then its word counts
        if (await ask(gateway)).status == 403:
            break
        await asyncio.sleep(0.01)
    assert (await ask(gateway)).status == 403


async def test_a_flood_of_tokens_pushes_no_good_one_out(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gatewayd.net.authority._MAX_JUDGED", 3)
    server = await server_at(gateway)
    await guarded_by_servers(gateway)
    assert (await ask(gateway)).status == 200
    server.answers = reply(b"", status="403 Forbidden")
    for i in range(10):
        assert (await ask(gateway, f"Authorization: Bearer token{i}")).status == 403
    assert (await ask(gateway)).status == 200
    assert len(server.requests) == 11
