"""However bytes are cut into segments, the same arrives."""

from __future__ import annotations

import asyncio

from conversation import Message, Wire, chunked, get, post, reply
from harness import Gateway
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SETTINGS = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

REQUESTS = (
    get("/1", "X-A: b")
    + post(b"0123456789", "/2")
    + get("/3", "Transfer-Encoding: chunked", method="PUT")
    + chunked(b"abc", b"defg", b"h")
    + get("/4", method="HEAD")
    + post(b"", "/5")
    + get("/6")
)
SEEN = [
    ("GET", "/1", b""),
    ("POST", "/2", b"0123456789"),
    ("PUT", "/3", b"abcdefgh"),
    ("HEAD", "/4", b""),
    ("POST", "/5", b""),
    ("GET", "/6", b""),
]
ANSWERS = [
    reply(b"counted body"),
    reply(b"a chunked body", framing="chunked"),
    b"HTTP/1.1 100 Continue\r\n\r\n" + reply(b"after an interim answer"),
    reply(b"", status="204 No Content", framing="none"),
    reply(b""),
    reply(b"", "Transfer-Encoding: chunked", framing="none")
    + b"3;x=y\r\nabc\r\n0\r\nX-Trailer: 1\r\n\r\n",
    reply(b"until the end", framing="none"),
]


def cuts(size: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(1, size - 1), max_size=12, unique=True).map(sorted)


def segments(data: bytes, at: list[int]) -> list[bytes]:
    return [data[i:j] for i, j in zip([0, *at], [*at, len(data)], strict=True)]


async def say(wire: Wire, data: bytes, at: list[int]) -> None:
    """Each segment in its own write, with a turn of the loop for the reader in between."""
    for piece in segments(data, at):
        wire.writer.write(piece)
        await asyncio.sleep(0)
        await asyncio.sleep(0)


@SETTINGS
@given(at=cuts(len(REQUESTS)))
async def test_requests_in_any_segments_arrive_the_same(gateway: Gateway, at: list[int]) -> None:
    replica = gateway.replicas.get("chat-a") or await gateway.serve()
    replica.answers = lambda request: (
        reply(b"", "Content-Length: 2", framing="none")
        if request.method == "HEAD"
        else reply(request.target.encode())
    )
    replica.requests.clear()
    client = await gateway.client()
    saying = asyncio.create_task(say(client, REQUESTS, at))
    for method, target, _ in SEEN:
        answer = await client.message(to=method)
        assert answer.body == (b"" if method == "HEAD" else target.encode())
    await saying
    client.close()
    assert [(r.method, r.target, r.body) for r in replica.requests] == SEEN


async def answered(gateway: Gateway, answer: bytes, at: list[int]) -> Message:
    replica = gateway.replicas.get("chat-a") or await gateway.serve()
    client = await gateway.client()
    await client.send(post(b"x"))
    wire, _ = await replica.request()
    await say(wire, answer, at)
    if answer.endswith(b"until the end"):
        wire.close()
    message = await client.message()
    message.fields = [f for f in message.fields if f[0] not in ("X-Request-Id", "Date")]
    client.close()
    wire.close()
    return message


@SETTINGS
@given(case=st.sampled_from(ANSWERS).flatmap(lambda a: st.tuples(st.just(a), cuts(len(a)))))
async def test_answers_in_any_segments_arrive_the_same(
    gateway: Gateway, case: tuple[bytes, list[int]]
) -> None:
    answer, at = case
    assert await answered(gateway, answer, at) == await answered(gateway, answer, [])
