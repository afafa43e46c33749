"""Handshakes: which are refused, how each that fails is counted, what is resumed."""

from __future__ import annotations

import asyncio
import socket
import ssl

import pytest
from certificates import Authority
from conversation import reply
from harness import HELLO, Gateway
from waiting import until

# --- handshakes


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_session_is_resumed(
    secure: Gateway, authority: Authority, version: ssl.TLSVersion
) -> None:
    context = authority.client(minimum_version=version, maximum_version=version)
    await secure.serve()
    wire = await secure.tls_client(context)
    secure.replicas["chat-a"].answers = reply(b"yes")
    await wire.ask(HELLO)  # with it comes the ticket of TLS 1.3
    session = wire.writer.get_extra_info("ssl_object").session
    resumed = await asyncio.to_thread(_resumes, context, secure.tls_port, session)
    assert resumed


def _resumes(context: ssl.SSLContext, port: int, session: ssl.SSLSession | None) -> bool:
    with (
        socket.create_connection(("127.0.0.1", port)) as raw,
        context.wrap_socket(raw, server_hostname="chat.example", session=session) as tls,
    ):
        return bool(tls.session_reused)


async def test_old_versions_are_refused_and_counted(secure: Gateway, authority: Authority) -> None:
    context = authority.client()
    with pytest.warns(DeprecationWarning, match="TLSv1_1 is deprecated"):
        context.minimum_version = ssl.TLSVersion.TLSv1_1
    with pytest.warns(DeprecationWarning, match="TLSv1_1 is deprecated"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError):
        await secure.tls_client(context)
    await until(lambda: secure.totals("").rejections == {"tls_version": 1})


async def test_a_client_that_does_not_trust_the_certificate_is_counted(secure: Gateway) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        await asyncio.to_thread(_resumes, ssl.create_default_context(), secure.tls_port, None)
    await until(lambda: secure.totals("").rejections == {"tls_refused": 1})


async def test_plain_http_is_told_so(secure: Gateway) -> None:
    wire = await secure.client(secure.tls_port)
    await wire.send(HELLO)
    answer = await wire.message()
    assert answer.status == 400
    assert b"HTTPS" in answer.body
    assert await wire.gone() == b""
    assert secure.totals("").rejections == {"tls_plain_http": 1}


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01\x02\x00\x01", b"\x16\x03\x01\x00\x05junk!!"])
async def test_a_handshake_that_does_not_go_on_is_bounded(secure: Gateway, said: bytes) -> None:
    secure.limit(header_timeout=0.1)
    await until(lambda: secure.plane.sweeper.resting)  # it is looked at even as the first
    wire = await secure.client(secure.tls_port)
    await wire.send(said)
    await wire.gone()
    (reason,) = secure.totals("").rejections
    assert reason == ("tls_broken" if said.endswith(b"!!") else "tls_timeout")


async def test_a_client_gone_in_the_handshake_is_counted(secure: Gateway) -> None:
    wire = await secure.client(secure.tls_port)
    await wire.send(b"\x16\x03\x01")
    wire.close()
    await until(lambda: secure.totals("").rejections == {"tls_gone": 1})


async def test_a_secured_connection_without_a_request_is_kept_as_a_plain_one(
    secure: Gateway, authority: Authority
) -> None:
    secure.limit(header_timeout=0.05, keepalive_timeout=5.0)
    replica = await secure.serve()
    replica.answers = reply(b"yes")
    wire = await secure.tls_client(authority.client())
    await wire.nothing(0.2)
    assert (await wire.ask(HELLO)).body == b"yes"
