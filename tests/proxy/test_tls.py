"""HTTPS at a worker: handshakes, names, the ends of connections, and what plain HTTP gets."""

from __future__ import annotations

import asyncio
import gc
import ssl
import weakref

import pytest
from certificates import Authority
from conversation import Cut, Replica, Wire, chunked, get, post, reply, soon
from harness import HELLO, Gateway
from waiting import until

from gatewayd.core.entrypoint import Entrypoint
from gatewayd.core.model import Hsts
from gatewayd.net.tls import context_of


async def served_name(gateway: Gateway, authority: Authority, name: str) -> list[str]:
    """The names of the certificate that a client of `name` is shown."""
    wire = await gateway.tls_client(authority.client(), name)
    certificate = wire.writer.get_extra_info("peercert")
    wire.close()
    return [value for _, value in certificate["subjectAltName"]]


async def asked(gateway: Gateway, authority: Authority, replica: Replica) -> tuple[Wire, Wire]:
    """A client whose request has arrived at its replica, and the replica's connection."""
    wire = await gateway.tls_client(authority.client())
    await wire.send(HELLO)
    upstream = await replica.accept()
    await upstream.message()
    return wire, upstream


# --- a request


async def test_a_request_is_forwarded_and_told_that_it_came_by_https(
    secure: Gateway, authority: Authority
) -> None:
    replica = await secure.serve()
    wire = await secure.tls_client(authority.client())
    await wire.send(HELLO)
    upstream = await replica.accept()
    request = await upstream.message()
    assert request["X-Forwarded-Proto"] == "https"
    await upstream.send(reply(b"yes"))
    answer = await wire.message()
    assert (answer.status, answer.body) == (200, b"yes")
    assert wire.writer.get_extra_info("ssl_object").selected_alpn_protocol() is None


async def test_requests_follow_one_another_on_a_connection(
    secure: Gateway, authority: Authority
) -> None:
    replica = await secure.serve()
    replica.answers = reply(b"yes")
    wire = await secure.tls_client(authority.client())
    await wire.send(HELLO + HELLO)
    for _ in range(2):
        assert (await wire.message()).body == b"yes"
    assert (await wire.ask(HELLO)).body == b"yes"


async def test_a_body_of_megabytes_passes_both_ways(secure: Gateway, authority: Authority) -> None:
    replica = await secure.serve()
    body = bytes(range(256)) * 16 * 1024  # 4 MiB
    wire = await secure.tls_client(authority.client(), limit=1 << 24)
    sending = asyncio.ensure_future(wire.send(post(body)))
    upstream = await replica.accept()
    assert (await upstream.message()).body == body
    await sending
    reading = asyncio.ensure_future(wire.message())
    await upstream.send(reply(body))
    assert (await reading).body == body


async def test_events_arrive_one_by_one(secure: Gateway, authority: Authority) -> None:
    replica = await secure.serve()
    wire, upstream = await asked(secure, authority, replica)
    await upstream.send(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    await wire.upto(b"\r\n\r\n")
    for number in range(3):
        event = b"data: %d\n\n" % number
        chunk = chunked(event).removesuffix(b"0\r\n\r\n")
        await upstream.send(chunk)
        await wire.expect(chunk)
    await upstream.send(b"0\r\n\r\n")
    await wire.expect(b"0\r\n\r\n")


async def test_a_client_that_does_not_read_stops_its_replica(
    secure: Gateway, authority: Authority
) -> None:
    replica = await secure.serve()
    wire = await secure.tls_client(authority.client(), limit=1024)
    await wire.send(HELLO)
    upstream = await replica.accept()
    await upstream.message()
    await upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 104857600\r\n\r\n")
    piece = bytes(1 << 20)
    sent = 0
    try:
        while sent < 100:
            async with asyncio.timeout(0.3):
                upstream.writer.write(piece)
                await upstream.writer.drain()
            sent += 1
    except TimeoutError:
        pass
    assert sent < 16  # MiB: what the kernel holds, ours and the client's
    wire.reset()
    await upstream.gone()


async def test_a_client_that_leaves_ends_its_replicas_work(
    secure: Gateway, authority: Authority
) -> None:
    replica = await secure.serve()
    for leave in (Wire.close, Wire.reset):
        wire, upstream = await asked(secure, authority, replica)
        leave(wire)
        await upstream.gone()
    await until(lambda: secure.totals().codes.get(499) == 2)


async def test_a_tunnel_passes_bytes_both_ways(secure: Gateway, authority: Authority) -> None:
    replica = await secure.serve()
    wire = await secure.tls_client(authority.client())
    await wire.send(
        b"GET / HTTP/1.1\r\nHost: chat.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    )
    upstream = await replica.accept()
    await upstream.message()
    await upstream.send(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhi"
    )
    await wire.upto(b"\r\n\r\n")
    await wire.expect(b"hi")
    await wire.send(b"there")
    await upstream.expect(b"there")
    upstream.close()
    await wire.gone()


async def test_a_broken_answer_is_not_taken_for_a_whole_one(
    secure: Gateway, authority: Authority
) -> None:
    """No close notify: a client can tell, whatever the framing was."""
    replica = await secure.serve()
    wire, upstream = await asked(secure, authority, replica)
    await upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
    await wire.upto(b"half")
    upstream.reset()
    with pytest.raises(Cut):
        await wire.exactly(1)


async def test_a_refusal_reaches_a_client_that_is_still_sending(
    secure: Gateway, authority: Authority
) -> None:
    await secure.serve(client_max_body_size=1000)
    wire = await secure.tls_client(authority.client())
    await wire.send(
        b"POST / HTTP/1.1\r\nHost: chat.example\r\nContent-Length: 4000000\r\n\r\n", bytes(500_000)
    )
    assert (await wire.message()).status == 413
    assert await wire.gone() == b""


# --- which certificate


async def test_the_name_chooses_exact_then_wildcard(gateway: Gateway, authority: Authority) -> None:
    await gateway.listen_tls(
        authority.pair("*.w.example"), authority.pair("a.w.example"), authority.pair("*.b.example")
    )
    assert await served_name(gateway, authority, "a.w.example") == ["a.w.example"]
    assert await served_name(gateway, authority, "Other.W.example") == ["*.w.example"]
    assert await served_name(gateway, authority, "a.b.example") == ["*.b.example"]


@pytest.mark.parametrize("name", ["b.example", "a.chat.example", None])
async def test_an_unknown_name_or_none_is_refused(
    secure: Gateway, authority: Authority, name: str | None
) -> None:
    context = authority.client(check_hostname=False)
    with pytest.raises(ssl.SSLError, match="UNRECOGNIZED_NAME"):
        await asyncio.open_connection(
            "127.0.0.1", secure.tls_port, ssl=context, server_hostname=name or ""
        )
    await until(lambda: secure.totals("").rejections == {"tls_unknown_name": 1})


async def test_a_default_certificate_is_for_everybody_else(
    gateway: Gateway, authority: Authority
) -> None:
    await gateway.listen_tls(
        authority.pair("chat.example"), authority.pair("*.d.example"), default="*.d.example"
    )
    context = authority.client(check_hostname=False)
    for name in ("unknown.example", ""):
        wire = await gateway.tls_client(context, name)
        names = wire.writer.get_extra_info("peercert")["subjectAltName"]
        assert names == (("DNS", "*.d.example"),)
    assert await served_name(gateway, authority, "chat.example") == ["chat.example"]


async def test_certificates_are_swapped_while_connections_go_on(
    secure: Gateway, authority: Authority
) -> None:
    replica = await secure.serve()
    replica.answers = reply(b"yes")
    wire = await secure.tls_client(authority.client())
    before = wire.writer.get_extra_info("peercert")["serialNumber"]
    secure.contexts.replace((authority.pair("chat.example"),), None)
    fresh = await secure.tls_client(authority.client())
    assert fresh.writer.get_extra_info("peercert")["serialNumber"] != before
    for each in (wire, fresh):
        assert (await each.ask(HELLO)).body == b"yes"


# --- ACME


async def test_a_challenge_is_answered_at_any_host_before_a_redirect(secure: Gateway) -> None:
    await secure.serve(https=True)
    wire = await secure.client()
    assert (await wire.ask(get("/.well-known/acme-challenge/token-1"))).status == 404
    secure.edge.challenges = {"token-1": "token-1.thumbprint"}
    for host in ("chat.example", "new.example"):
        wire = await secure.client()
        answer = await wire.ask(get("/.well-known/acme-challenge/token-1", host=host))
        assert (answer.status, answer.body.strip()) == (200, b"token-1.thumbprint")
        answer = await wire.ask(get("/.well-known/acme-challenge/other", host=host))
        assert answer.status == 404
    wire = await secure.client()
    assert (await wire.ask(get("/.well-known/acme-challenge"))).status == 301
    wire = await secure.client()
    assert (await wire.ask(get("/.well-known/acme-challenge/token-1/"))).status == 404


async def test_a_challenge_certificate_is_for_acme_only(
    secure: Gateway, authority: Authority
) -> None:
    challenge = authority.pair("chat.example")
    secure.contexts.challenge({"chat.example": challenge})
    assert context_of(challenge)
    normal = await secure.tls_client(authority.client())
    context = authority.client()
    context.set_alpn_protocols(["acme-tls/1"])
    wire = await secure.tls_client(context)
    seen = wire.writer.get_extra_info("ssl_object")
    assert seen.selected_alpn_protocol() == "acme-tls/1"
    assert seen.getpeercert(True) != normal.writer.get_extra_info("ssl_object").getpeercert(True)
    assert await wire.gone() == b""
    with pytest.raises(ssl.SSLError, match="UNRECOGNIZED_NAME"):
        await secure.tls_client(context, "other.example")


# --- redirects


@pytest.mark.parametrize(
    ("method", "status"), [("GET", 301), ("HEAD", 301), ("POST", 308), ("DELETE", 308)]
)
async def test_plain_http_is_redirected_before_anything_else(
    secure: Gateway, method: str, status: int
) -> None:
    await secure.serve(https=True, auth=True, allowed_paths=("/v1/",))
    wire = await secure.client()
    target = "/x?q=%20y"
    answer = await wire.ask(f"{method} {target} HTTP/1.1\r\nHost: Chat.example\r\n\r\n".encode())
    assert answer.status == status
    assert answer["Location"] == f"https://chat.example{target}"
    wire = await secure.client()
    answer = await wire.ask(get(target, host=f"chat.example:{secure.port}"))
    assert answer["Location"] == f"https://chat.example:{secure.tls_port}{target}"


async def test_who_came_by_https_is_not_redirected(secure: Gateway, authority: Authority) -> None:
    replica = await secure.serve(https=True, hsts=Hsts(60, subdomains=True))
    replica.answers = reply(b"yes", "Strict-Transport-Security: max-age=1")
    wire = await secure.tls_client(authority.client())
    answer = await wire.ask(HELLO)
    assert answer.body == b"yes"
    assert answer["Strict-Transport-Security"] == "max-age=60; includeSubDomains"


async def test_a_trusted_proxys_word_counts(secure: Gateway) -> None:
    replica = await secure.serve(https=True, hsts=Hsts(60))
    replica.answers = reply(b"yes")
    wire = await secure.client()
    said = b"GET / HTTP/1.1\r\nHost: chat.example\r\nX-Forwarded-Proto: https\r\n\r\n"
    answer = await wire.ask(said)
    assert answer.status == 301
    assert "Strict-Transport-Security" not in answer
    secure.trusted_proxies = ("127.0.0.0/8",)
    secure.publish()
    answer = await wire.ask(said)
    assert answer.status == 200
    assert "Strict-Transport-Security" in answer
    assert (await wire.ask(HELLO)).status == 301


async def test_a_model_endpoint_is_redirected_as_well(secure: Gateway) -> None:
    secure.entrypoints = [Entrypoint("main", "models.example", https=True)]
    await secure.serve()
    wire = await secure.client()
    answer = await wire.ask(get("/v1/models", host="models.example"))
    assert (answer.status, answer["Location"]) == (301, "https://models.example/v1/models")


# --- the end


async def test_a_drain_lets_a_handshake_end(secure: Gateway, authority: Authority) -> None:
    wire = await secure.client(secure.tls_port)
    await until(lambda: secure.plane.servers[-1].connections)
    (connection,) = secure.plane.servers[-1].each()
    assert not connection.idle
    wire.close()
    await soon(wire.gone())


async def test_nothing_is_left_of_a_connection(secure: Gateway, authority: Authority) -> None:
    """By counting references alone: collecting cycles is put off in a worker."""
    replica = await secure.serve()
    replica.answers = reply(b"yes")
    gc.collect()
    gc.disable()
    try:
        for leave in (Wire.close, Wire.reset):
            wire = await secure.tls_client(authority.client())
            (connection,) = secure.plane.servers[-1].each()
            left = weakref.ref(connection.transport.get_extra_info("ssl_object"))
            assert (await wire.ask(HELLO)).body == b"yes"
            del connection
            leave(wire)
            await secure.settle_clients()
            await until(lambda left=left: left() is None, "it was freed")
    finally:
        gc.enable()
