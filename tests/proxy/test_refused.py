"""Refused, never repaired: requests whose meaning depends on who reads them reach nobody."""

from __future__ import annotations

import asyncio

import pytest
from conversation import get, reply
from harness import Gateway

from gatewayd.core.model import RateLimit

HOST = b"Host: chat.example\r\n"
POST = b"POST /x HTTP/1.1\r\n" + HOST
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"

REQUESTS: dict[str, bytes] = {
    # lengths
    "length and coding": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "coding and length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two equal lengths": POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nok",
    "two lengths": POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nok!",
    "a list of lengths": POST + b"Content-Length: 2, 2\r\n\r\nok",
    "length with sign": POST + b"Content-Length: +2\r\n\r\nok",
    "negative length": POST + b"Content-Length: -2\r\n\r\nok",
    "hexadecimal length": POST + b"Content-Length: 0x2\r\n\r\nok",
    "length with underscore": POST + b"Content-Length: 1_0\r\n\r\n0123456789",
    "length with space": POST + b"Content-Length: 1 0\r\n\r\n0123456789",
    "length with point": POST + b"Content-Length: 2.0\r\n\r\nok",
    "empty length": POST + b"Content-Length: \r\n\r\n",
    "length overflow": POST + b"Content-Length: 18446744073709551618\r\n\r\nok",
    "huge length": POST + b"Content-Length: 99999999999999999999\r\n\r\nok",
    "very long length": POST + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\nok",
    # codings
    "gzip, chunked": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked, gzip": POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "chunked, chunked": POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "identity": POST + b"Transfer-Encoding: identity\r\n\r\n",
    "identity, chunked": POST + b"Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n",
    "x-chunked": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "quoted chunked": POST + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "chunked with parameter": POST + b"Transfer-Encoding: chunked;a=b\r\n\r\n0\r\n\r\n",
    "empty coding": POST + b"Transfer-Encoding: \r\n\r\n",
    "coding twice": POST
    + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "coding twice, one identity": POST
    + b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "vertical tab": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "coding in HTTP/1.0": b"POST /x HTTP/1.0\r\n"
    + HOST
    + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    # field lines
    "obs-fold": b"GET / HTTP/1.1\r\n" + HOST + b"A: b\r\n c\r\n\r\n",
    "obs-fold with tab": b"GET / HTTP/1.1\r\n" + HOST + b"A: b\r\n\tc\r\n\r\n",
    "fold in the first field": b"GET / HTTP/1.1\r\n " + HOST + b"\r\n",
    "bare LF": b"GET / HTTP/1.1\n" + HOST + b"\r\n",
    "bare LF in fields": b"GET / HTTP/1.1\r\nHost: chat.example\nA: b\r\n\r\n",
    "bare LF at the end": b"GET / HTTP/1.1\r\nHost: chat.example\r\n\n",
    "all bare LF": b"GET / HTTP/1.1\nHost: chat.example\n\n",
    "bare CR": b"GET / HTTP/1.1\r\nHost: chat.example\rA: b\r\n\r\n",
    "bare CR in value": b"GET / HTTP/1.1\r\n" + HOST + b"A: b\rc\r\n\r\n",
    "CR CR LF": b"GET / HTTP/1.1\r\n" + HOST + b"A: b\r\r\n\r\n",
    "space before colon": b"GET / HTTP/1.1\r\nHost : chat.example\r\n\r\n",
    "tab before colon": b"GET / HTTP/1.1\r\n" + HOST + b"A\t: b\r\n\r\n",
    "space in name": b"GET / HTTP/1.1\r\n" + HOST + b"A B: c\r\n\r\n",
    "no name": b"GET / HTTP/1.1\r\n" + HOST + b": c\r\n\r\n",
    "no colon": b"GET / HTTP/1.1\r\n" + HOST + b"nonsense\r\n\r\n",
    "NUL in value": b"GET / HTTP/1.1\r\n" + HOST + b"A: b\x00c\r\n\r\n",
    "NUL in name": b"GET / HTTP/1.1\r\n" + HOST + b"A\x00: b\r\n\r\n",
    "control in value": b"GET / HTTP/1.1\r\n" + HOST + b"A: b\x01\r\n\r\n",
    "escape in value": b"GET / HTTP/1.1\r\n" + HOST + b"A: \x1b[31m\r\n\r\n",
    "DEL in value": b"GET / HTTP/1.1\r\n" + HOST + b"A: b\x7f\r\n\r\n",
    "8 bits in name": b"GET / HTTP/1.1\r\n" + HOST + b"\xc3\xa4: b\r\n\r\n",
    # request lines
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/0.9 with version": b"GET / HTTP/0.9\r\n" + HOST + b"\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\n" + HOST + b"\r\n",
    "HTTP/2.0": b"GET / HTTP/2.0\r\n" + HOST + b"\r\n",
    "HTTP/3.0": b"GET / HTTP/3.0\r\n" + HOST + b"\r\n",
    "HTTP/1.10": b"GET / HTTP/1.10\r\n" + HOST + b"\r\n",
    "HTTP/11": b"GET / HTTP/11\r\n" + HOST + b"\r\n",
    "http/1.1": b"GET / http/1.1\r\n" + HOST + b"\r\n",
    "RTSP/1.0": b"GET / RTSP/1.0\r\n" + HOST + b"\r\n",
    "RTSP/1.1": b"GET / RTSP/1.1\r\n" + HOST + b"\r\n",
    "ICE/1.0": b"SOURCE / ICE/1.0\r\n" + HOST + b"\r\n",
    "two spaces before target": b"GET  / HTTP/1.1\r\n" + HOST + b"\r\n",
    "two spaces before version": b"GET /  HTTP/1.1\r\n" + HOST + b"\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 32 + b"\r\n\r\n",
    "space in target": b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n",
    "tab in target": b"GET /a\tb HTTP/1.1\r\n" + HOST + b"\r\n",
    "NUL in target": b"GET /a\x00b HTTP/1.1\r\n" + HOST + b"\r\n",
    "control in target": b"GET /a\x01b HTTP/1.1\r\n" + HOST + b"\r\n",
    "DEL in target": b"GET /a\x7fb HTTP/1.1\r\n" + HOST + b"\r\n",
    "fragment in target": b"GET /a#b HTTP/1.1\r\n" + HOST + b"\r\n",
    "8 bits in target": b"GET /\xc3\xa4 HTTP/1.1\r\n" + HOST + b"\r\n",
    "8 bits in query": b"GET /?\xff HTTP/1.1\r\n" + HOST + b"\r\n",
    "relative target": b"GET a HTTP/1.1\r\n" + HOST + b"\r\n",
    "asterisk of GET": b"GET * HTTP/1.1\r\n" + HOST + b"\r\n",
    "unknown method": b"GRAB / HTTP/1.1\r\n" + HOST + b"\r\n",
    "lower-case method": b"get / HTTP/1.1\r\n" + HOST + b"\r\n",
    "no method": b" / HTTP/1.1\r\n" + HOST + b"\r\n",
    "CONNECT": b"CONNECT chat.example:443 HTTP/1.1\r\nHost: chat.example:443\r\n\r\n",
    "CONNECT with path": b"CONNECT /x HTTP/1.1\r\n" + HOST + b"\r\n",
    "an answer": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "other protocol": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    # hosts
    "no Host": b"GET / HTTP/1.1\r\nA: b\r\n\r\n",
    "empty Host": b"GET / HTTP/1.1\r\nHost: \r\n\r\n",
    "two Hosts": b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n",
    "conflicting Hosts": b"GET / HTTP/1.1\r\n" + HOST + b"Host: other.example\r\n\r\n",
    "list of Hosts": b"GET / HTTP/1.1\r\nHost: chat.example, other.example\r\n\r\n",
    "Host with userinfo": b"GET / HTTP/1.1\r\nHost: me@chat.example\r\n\r\n",
    "Host with password": b"GET / HTTP/1.1\r\nHost: me:secret@chat.example\r\n\r\n",
    "Host with path": b"GET / HTTP/1.1\r\nHost: chat.example/x\r\n\r\n",
    "Host with space": b"GET / HTTP/1.1\r\nHost: chat .example\r\n\r\n",
    "Host with junk port": b"GET / HTTP/1.1\r\nHost: chat.example:http\r\n\r\n",
    "Host with long port": b"GET / HTTP/1.1\r\nHost: chat.example:123456\r\n\r\n",
    "Host with query": b"GET / HTTP/1.1\r\nHost: chat.example?x\r\n\r\n",
    "Host with backslash": b"GET / HTTP/1.1\r\nHost: chat.example\\x\r\n\r\n",
    "Host with open bracket": b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n",
    "Host with 8 bits": b"GET / HTTP/1.1\r\nHost: ch\xe4t.example\r\n\r\n",
    # absolute form
    "absolute form of another host": b"GET http://other.example/ HTTP/1.1\r\n" + HOST + b"\r\n",
    "absolute form with userinfo": b"GET http://me@chat.example/ HTTP/1.1\r\n" + HOST + b"\r\n",
    "absolute form without host": b"GET http:///x HTTP/1.1\r\n" + HOST + b"\r\n",
    "absolute form of ftp": b"GET ftp://chat.example/ HTTP/1.1\r\n" + HOST + b"\r\n",
    "absolute form, no Host": b"GET http://chat.example/ HTTP/1.1\r\n\r\n",
    "absolute form with fragment": b"GET http://chat.example/#x HTTP/1.1\r\n" + HOST + b"\r\n",
    # upgrades
    "h2c": get("/", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMA"),
    "h2c among others": get("/", "Connection: upgrade", "Upgrade: websocket, h2c"),
    "H2C in capitals": get("/", "Connection: Upgrade", "Upgrade: H2C"),
    # fields that may be there once
    "two Authorizations": get("/", "Authorization: Bearer a", "Authorization: Bearer b"),
    "two Expects": POST + b"Content-Length: 2\r\nExpect: 100-continue\r\nExpect: x\r\n\r\n",
}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
async def test_it_is_refused_closed_and_reaches_nobody(gateway: Gateway, request_: bytes) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(request_ + get("/smuggled"))
    answer = await client.message()
    assert 400 <= answer.status < 500 or answer.status == 505
    assert answer.closes
    assert answer["X-Request-Id"]
    assert await client.gone() == b""
    assert replica.untouched
    codes = gateway.totals("").codes
    assert codes == {answer.status: 1}


@pytest.mark.parametrize("name", ["RTSP/1.0", "two spaces before target"])
@pytest.mark.parametrize("before", [b"", b"\r\n", get("/before")])
async def test_a_request_line_in_pieces(gateway: Gateway, name: str, before: bytes) -> None:
    replica = await gateway.serve()
    replica.answers = reply(b"ok")
    client = await gateway.client()
    if before.strip():
        assert (await client.ask(before)).status == 200
    else:
        await client.send(before)
    for at in range(0, len(REQUESTS[name]), 3):
        await client.send(REQUESTS[name][at : at + 3])
        await asyncio.sleep(0)
    assert (await client.message()).status == 400
    await client.gone()


BODIES: dict[str, bytes] = {
    "no digits": b"\r\n\r\n",
    "junk": b"xyz\r\nok\r\n0\r\n\r\n",
    "sign": b"+2\r\nok\r\n0\r\n\r\n",
    "negative": b"-2\r\nok\r\n0\r\n\r\n",
    "0x": b"0x2\r\nok\r\n0\r\n\r\n",
    "underscore": b"1_0\r\n0123456789012345\r\n0\r\n\r\n",
    "overflow": b"fffffffffffffffff\r\nok\r\n0\r\n\r\n",
    "overflow to 2": b"10000000000000002\r\nok\r\n0\r\n\r\n",
    "space before": b" 2\r\nok\r\n0\r\n\r\n",
    "space behind": b"2 \r\nok\r\n0\r\n\r\n",
    "tab behind": b"2\t\r\nok\r\n0\r\n\r\n",
    "bare LF": b"2\nok\n0\n\n",
    "bare LF behind data": b"2\r\nok\n0\r\n\r\n",
    "bare CR": b"2\rok\r0\r\r",
    "data too long": b"2\r\nokay\r\n0\r\n\r\n",
    "data too short": b"4\r\nok\r\n0\r\n\r\n",
    "bare LF in extension": b"2;a\nb\r\nok\r\n0\r\n\r\n",
    "NUL in extension": b"2;a\x00b\r\nok\r\n0\r\n\r\n",
    "bare LF in trailer": b"2\r\nok\r\n0\r\nA: b\n\r\n",
    "fold in trailer": b"2\r\nok\r\n0\r\nA: b\r\n c\r\n\r\n",
    "no colon in trailer": b"2\r\nok\r\n0\r\nnonsense\r\n\r\n",
}


@pytest.mark.parametrize("together", [True, False], ids=["together", "apart"])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
async def test_broken_chunks_are_refused_and_never_whole_at_the_replica(
    gateway: Gateway, body: bytes, together: bool
) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    if together:
        await client.send(CHUNKED + body + get("/smuggled"))
    else:
        await client.send(CHUNKED)
        wire = await replica.accept()
        head = await wire.upto(b"\r\n\r\n")
        assert b"Transfer-Encoding: chunked" in head
        await client.send(body + get("/smuggled"))
        seen = await wire.gone()
        assert not seen.endswith(b"0\r\n\r\n")
        assert b"smuggled" not in seen
    answer = await client.message()
    assert answer.status == 400
    assert answer.closes
    assert await client.gone() == b""
    if together:
        assert replica.untouched


async def test_a_request_behind_a_refused_one_is_not_read(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", get("/second"))
    assert (await client.message()).status == 400
    assert await client.gone() == b""
    assert replica.untouched


AMBIGUOUS = [
    "/a%2f..%2fadmin",
    "/a%2F../admin",
    "/a/..%2fadmin",
    "/%2e%2e%2fadmin",
    "/a\\..\\admin",
    "/a%5c..%5cadmin",
    "/a%00b",
    "/%252e%252e/admin",
    "/%2541",
    "/a/%25%32%66",
]


@pytest.mark.parametrize("target", AMBIGUOUS)
@pytest.mark.parametrize(
    "rule",
    [
        {"allowed_paths": ("/v1/", "/a")},
        {"rate_limits": (RateLimit("/admin", 1, 1),)},
    ],
    ids=["allow-list", "limit"],
)
async def test_an_ambiguous_path_is_refused_where_a_prefix_decides(
    gateway: Gateway, target: str, rule: dict[str, object]
) -> None:
    replica = await gateway.serve(**rule)
    client = await gateway.client()
    answer = await client.ask(get(target))
    assert answer.status == 400
    assert answer.closes
    assert replica.untouched


@pytest.mark.parametrize("target", AMBIGUOUS)
async def test_an_ambiguous_path_travels_on_raw_where_nothing_depends_on_it(
    gateway: Gateway, target: str
) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get(target))
    wire, request = await replica.request()
    assert request.target == target
    await wire.send(reply())
    assert (await client.message()).status == 200
