"""Handshakes for names whose certificate is on its way: who waits, for how long, for what."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from pathlib import Path

import pytest
from certificates import Authority, make_authority
from conversation import Wire, get, reply, soon
from harness import Gateway
from waiting import until

from gatewayd.net import awaited as awaited_module

NAME = "new.example"
REFUSED = b"\x15\x03\x03\x00\x02\x02\x70"  # a fatal alert: unrecognized_name (RFC 6066, 3)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return make_authority()


@pytest.fixture
async def secure(gateway: Gateway, authority: Authority) -> Gateway:
    """One name is served, another one's certificate is on its way."""
    await gateway.listen_tls(authority.pair("chat.example"))
    gateway.contexts.awaited.expect({NAME}, ())
    return gateway


def come(secure: Gateway, name: str, context: ssl.SSLContext) -> asyncio.Task[Wire]:
    return asyncio.ensure_future(secure.tls_client(context, name))


async def held(secure: Gateway, count: int = 1) -> None:
    await until(lambda: secure.contexts.awaited.held == count, f"{count} wait")


def arrive(secure: Gateway, authority: Authority) -> None:
    secure.contexts.replace((authority.pair("chat.example"), authority.pair(NAME)), None)


def hello_of(name: str | None, *, alpn: tuple[str, ...] = ("h2", "http/1.1")) -> bytes:
    """What Python's client says first."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.set_alpn_protocols(alpn)
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def in_records(hello: bytes, size: int) -> bytes:
    """The same message in records of so many bytes (RFC 8446, 5.1)."""
    message = hello[5:]
    parts = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(b"\x16\x03\x01" + len(p).to_bytes(2, "big") + p for p in parts)


def long_hello(name: str, size: int) -> bytes:
    """With one more extension, of so many bytes, that nobody knows."""
    message = hello_of(name)[9:]
    at = 2 + 32
    at += 1 + message[at]
    at += 2 + int.from_bytes(message[at : at + 2], "big")
    at += 1 + message[at]
    extensions = b"\xfa\xfa" + size.to_bytes(2, "big") + bytes(size) + message[at + 2 :]
    message = message[:at] + len(extensions).to_bytes(2, "big") + extensions
    return in_records(bytes(5) + b"\x01" + len(message).to_bytes(3, "big") + message, 16384)


async def test_a_handshake_goes_on_when_the_certificate_comes(
    secure: Gateway, authority: Authority
) -> None:
    replica = await secure.serve("new")
    replica.answers = reply(b"yes")
    clients = [come(secure, name, authority.client()) for name in (NAME, "New.Example", NAME)]
    await held(secure, 3)
    chat = await secure.tls_client(authority.client())  # who is served does not wait
    assert chat.writer.get_extra_info("peercert")
    arrive(secure, authority)
    for client in clients:
        wire = await soon(client)
        assert (await wire.ask(get("/", host=NAME))).body == b"yes"
    assert secure.contexts.awaited.outcomes == {"served": 3}
    assert secure.totals("").rejections == {}


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
async def test_openssls_client_waits(
    secure: Gateway, authority: Authority, tmp_path: Path, version: str
) -> None:
    process = await asyncio.create_subprocess_exec(
        *("openssl", "s_client", "-connect", f"127.0.0.1:{secure.tls_port}", version),
        *("-servername", NAME, "-CAfile", str(authority.write(tmp_path))),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    await held(secure)
    arrive(secure, authority)
    output, _ = await soon(process.communicate())
    assert b"Verify return code: 0 (ok)" in output
    assert f"CN = {NAME}".encode() in output


async def test_no_certificate_comes_any_more(secure: Gateway, authority: Authority) -> None:
    client = come(secure, NAME, authority.client())
    await held(secure)
    secure.contexts.awaited.expect({"other.example"}, ())
    with pytest.raises(ssl.SSLError, match="UNRECOGNIZED_NAME"):
        await soon(client)
    assert secure.contexts.awaited.outcomes == {"refused": 1}
    await until(lambda: secure.totals("").rejections == {"tls_unknown_name": 1})


async def test_waiting_ends_with_the_time_for_a_handshake(
    secure: Gateway, authority: Authority
) -> None:
    secure.limit(header_timeout=0.1)
    with pytest.raises(ssl.SSLError, match="UNRECOGNIZED_NAME"):
        await soon(come(secure, NAME, authority.client()))
    assert secure.contexts.awaited.outcomes == {"refused": 1}
    await until(lambda: secure.totals("").rejections == {"tls_unknown_name": 1})


@pytest.mark.parametrize("name", ["other.example", "a.new.example", None])
async def test_other_names_are_refused_at_once(secure: Gateway, name: str | None) -> None:
    seen: list[str] = []
    secure.contexts.awaited.on_sight = seen.append
    secure.contexts.awaited.expect({NAME}, {"paused.example"})
    wire = await secure.client(secure.tls_port)
    await wire.send(hello_of(name))
    assert await wire.gone() == REFUSED
    assert (seen, secure.contexts.awaited.outcomes) == ([], {})


async def test_control_hears_once_that_clients_came_for_a_paused_name(
    secure: Gateway, authority: Authority
) -> None:
    seen: list[str] = []
    secure.contexts.awaited.on_sight = seen.append
    secure.contexts.awaited.expect((), {NAME})
    clients = [come(secure, NAME, authority.client()) for _ in range(3)]
    await held(secure, 3)
    assert seen == [NAME]
    secure.contexts.awaited.expect({NAME}, ())  # it is asked for
    arrive(secure, authority)
    for client in clients:
        await soon(client)


async def test_so_many_wait_and_no_more(
    secure: Gateway, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(awaited_module, "HELD_MAX", 2)
    clients = [come(secure, NAME, authority.client()) for _ in range(2)]
    await held(secure, 2)
    with pytest.raises(ssl.SSLError, match="UNRECOGNIZED_NAME"):
        await soon(come(secure, NAME, authority.client()))
    arrive(secure, authority)
    for client in clients:
        await soon(client)


async def test_a_client_that_leaves_waits_no_longer(secure: Gateway) -> None:
    for leave in (Wire.close, Wire.reset):
        wire = await secure.client(secure.tls_port)
        await wire.send(hello_of(NAME))
        await held(secure)
        leave(wire)
        await held(secure, 0)
        await secure.settle_clients()
    assert secure.contexts.awaited.outcomes == {"gone": 2}
    assert secure.totals("").rejections == {"tls_gone": 2}


async def test_a_drain_lets_nobody_wait(secure: Gateway, authority: Authority) -> None:
    client = come(secure, NAME, authority.client())
    await held(secure)
    secure.contexts.awaited.close()
    with pytest.raises(ssl.SSLError, match="UNRECOGNIZED_NAME"):
        await soon(client)


async def test_a_name_waits_for_its_own_certificate_and_not_for_the_default(
    gateway: Gateway, authority: Authority
) -> None:
    chat = authority.pair("chat.example")
    await gateway.listen_tls(chat, default="chat.example")
    gateway.contexts.awaited.expect({"a.new.example"}, ())
    client = come(gateway, "a.new.example", authority.client())
    await held(gateway)
    other = await gateway.tls_client(authority.client(check_hostname=False), "other.example")
    assert other.writer.get_extra_info("peercert")["subjectAltName"] == (("DNS", "chat.example"),)
    gateway.contexts.replace((chat, authority.pair("*.new.example")), "chat.example")
    wire = await soon(client)
    assert wire.writer.get_extra_info("peercert")["subjectAltName"] == (("DNS", "*.new.example"),)


# --- bytes


@pytest.mark.parametrize("cut", [1, 4, 5, 6, 40, 100])
async def test_a_hello_in_pieces(secure: Gateway, cut: int) -> None:
    wire = await secure.client(secure.tls_port)
    hello = hello_of(NAME)
    for piece in (hello[:cut], hello[cut:-1], hello[-1:]):
        assert secure.contexts.awaited.held == 0
        await wire.send(piece)
        await wire.nothing(0.02)
    await held(secure)
    secure.contexts.awaited.expect((), ())
    assert await wire.gone() == REFUSED


@pytest.mark.parametrize("size", [1, 3, 50, 200])
async def test_a_hello_in_several_records(secure: Gateway, size: int) -> None:
    wire = await secure.client(secure.tls_port)
    await wire.send(in_records(hello_of(NAME), size))
    await held(secure)
    secure.contexts.awaited.expect((), ())
    assert await wire.gone() == REFUSED


@pytest.mark.parametrize(
    "said",
    [
        b"\x16\x03\x01\x00\x05junk!!",
        b"\x16\x03\x01\x00\x00",
        b"\x16" * 100,
        hello_of(NAME)[:60] + bytes(300),
        b"\x16\x03\x01\x40\x00\x01\xff\xff\xff" + bytes(20000),
    ],
)
async def test_garbage_is_openssls_to_refuse(secure: Gateway, said: bytes) -> None:
    secure.limit(header_timeout=0.1)
    wire = await secure.client(secure.tls_port)
    await wire.send(said)
    await wire.gone()
    assert secure.contexts.awaited.outcomes == {}
    await until(lambda: len(secure.totals("").rejections) == 1)


async def test_a_hello_that_is_too_long_to_keep_does_not_wait(secure: Gateway) -> None:
    for name, answer in ((NAME, REFUSED[:1]), ("chat.example", b"\x16")):
        wire = await secure.client(secure.tls_port)
        await wire.send(long_hello(name, 20_000))
        assert await wire.exactly(1) == answer
        wire.reset()
    assert secure.contexts.awaited.outcomes == {}
    wire = await secure.client(secure.tls_port)
    await wire.send(long_hello(NAME, 10_000))
    await held(secure)
    await wire.send(bytes(10_000))  # and goes on talking
    assert await wire.gone() == REFUSED


# --- ACME


async def test_an_authority_that_looks_for_a_proof_never_waits(
    secure: Gateway, authority: Authority
) -> None:
    context = authority.client()
    context.set_alpn_protocols(["acme-tls/1"])
    with pytest.raises(ssl.SSLError, match="UNRECOGNIZED_NAME"):
        await soon(come(secure, NAME, context))
    secure.contexts.challenge({NAME: authority.pair(NAME)})
    wire = await soon(come(secure, NAME, context))
    assert wire.writer.get_extra_info("ssl_object").selected_alpn_protocol() == "acme-tls/1"
    assert secure.contexts.awaited.outcomes == {}


@pytest.mark.parametrize("served", [False, True])
async def test_an_authority_whose_hello_comes_in_pieces_gets_its_proof(
    secure: Gateway, authority: Authority, served: bool
) -> None:
    """With a key share of today it is longer than a packet."""
    secure.contexts.awaited.expect((), ())
    if served:
        arrive(secure, authority)
    proof = authority.pair(NAME)
    secure.contexts.challenge({NAME: proof})
    context = authority.client()
    context.set_alpn_protocols(["acme-tls/1"])
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=NAME)
    wire = await secure.client(secure.tls_port)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    await wire.send(outgoing.read(50))
    await wire.nothing(0.02)
    await wire.send(outgoing.read())
    while client.selected_alpn_protocol() is None:
        incoming.write(await soon(wire.reader.read(1 << 14)))
        with contextlib.suppress(ssl.SSLWantReadError):
            client.do_handshake()
    assert client.selected_alpn_protocol() == "acme-tls/1"
    leaf = proof.chain.decode().partition("-----END")[0] + "-----END CERTIFICATE-----"
    assert client.getpeercert(True) == ssl.PEM_cert_to_DER_cert(leaf)
