"""The TGI adapter on the wire: chat calls at the model endpoint, `/generate` at the replica."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from conversation import Cut, Message, Replica, Wire, chunked, get, post, reply
from harness import Gateway
from waiting import until

from gatewayd.core.entrypoint import Entrypoint, ModelEntry, TgiFormat
from gatewayd.core.model import RateLimit, Timeouts

HOST = "gateway.example"
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}<assistant>"
)
HI = [{"role": "user", "content": "hi"}]


def chat(*fields: str, messages: Any = HI, **call: Any) -> bytes:
    body = json.dumps({"model": "m", "messages": messages, **call}).encode()
    return post(body, "/v1/chat/completions", *fields, host=HOST)


@pytest.fixture
async def replica(gateway: Gateway) -> Replica:
    gateway.entrypoints.append(Entrypoint("main", HOST))
    gateway.models.append(ModelEntry("main", "m", "chat", 1, TgiFormat(TEMPLATE, "</s>")))
    return await gateway.serve(timeouts=Timeouts(first_byte=5))


def event(text: str, **details: Any) -> bytes:
    token = {"token": {"id": 1, "text": text, "special": False}, "details": details or None}
    return b"data:%b\n\n" % json.dumps(token).encode()


def generated(text: str = "hello</s>") -> bytes:
    details = {"finish_reason": "eos_token", "generated_tokens": 2, "prefill": [{}, {}, {}]}
    return json.dumps({"generated_text": text, "details": details}).encode()


STOP = {"finish_reason": "eos_token", "generated_tokens": 2}
EVENTS = "Content-Type: text/event-stream"


async def events(client: Wire) -> list[Any]:
    """The whole of a chunked stream of events."""
    message = await client.message()
    assert message.status == 200
    assert message["Content-Type"] == "text/event-stream"
    lines = message.body.decode().split("\n\n")
    assert lines.pop() == ""
    return [line.removeprefix("data: ") for line in lines]


async def test_a_call_and_its_answer(gateway: Gateway, replica: Replica) -> None:
    client = await gateway.client()
    sent = chat("Accept-Encoding: gzip", "Authorization: Bearer x", max_tokens=9)
    await client.send(sent)
    wire, request = await replica.request()
    assert request.start == "POST /generate HTTP/1.1"
    assert request["Host"] == "chat.example"
    assert request["Content-Type"] == "application/json"
    assert "Accept-Encoding" not in request
    body = json.loads(request.body)
    assert body["inputs"] == "<user>hi</s><assistant>"
    assert body["parameters"]["max_new_tokens"] == 9
    await wire.send(reply(generated(), "Content-Type: application/json"))
    answer = await client.message()
    assert answer.status == 200
    assert answer["Content-Type"] == "application/json"
    assert answer["Access-Control-Allow-Origin"] == "*"
    found = json.loads(answer.body)
    assert found["choices"][0]["message"] == {"role": "assistant", "content": "hello"}
    assert found["usage"]["prompt_tokens"] == 3
    totals = gateway.totals()
    assert totals.codes == {200: 1}
    assert totals.ways == {"direct": 1}
    assert totals.bytes_in == len(sent.partition(b"\r\n\r\n")[2])


async def swept(gateway: Gateway) -> None:
    """Every exchange has been looked at three times."""
    looks: list[float] = []
    look = gateway.plane.sweeper._slow

    def counted(now: float) -> Any:
        looks.append(now)
        return look(now)

    gateway.plane.sweeper._slow = counted
    await until(lambda: len(looks) >= 3)
    gateway.plane.sweeper._slow = look


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_that_lasts_is_translated_to_its_end(
    gateway: Gateway, replica: Replica, stream: bool
) -> None:
    client = await gateway.client()
    await client.send(chat(stream=stream))
    wire, _ = await replica.request()
    pieces = [event("he"), event("llo"), event("</s>", **STOP)]
    if not stream:
        whole = generated()
        pieces = [whole[:9], whole[9:20], whole[20:]]
    fields = EVENTS if stream else "Content-Type: application/json"
    await wire.send(reply(b"", fields, framing="chunked")[:-5])
    for piece in pieces:
        await wire.send(chunked(piece)[:-5])
        await swept(gateway)
    await wire.send(b"0\r\n\r\n")
    if stream:
        deltas = [json.loads(line)["choices"][0]["delta"] for line in (await events(client))[:-1]]
        assert "".join(delta.get("content", "") for delta in deltas) == "hello"
    else:
        found = json.loads((await client.message()).body)
        assert found["choices"][0]["message"]["content"] == "hello"


async def test_an_answer_in_chunks_and_a_call_in_pieces(gateway: Gateway, replica: Replica) -> None:
    client = await gateway.client()
    head, _, body = chat().partition(b"\r\n\r\n")
    await client.send(head + b"\r\n\r\n", body[:30], body[30:])
    wire, _ = await replica.request()
    answer = generated()
    await wire.send(reply(b"", framing="chunked")[:-5])
    for part in (answer[:20], answer[20:]):
        await wire.send(b"%x\r\n%b\r\n" % (len(part), part))
    await wire.send(b"0\r\n\r\n")
    assert json.loads((await client.message()).body)["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("framing", ["chunked", "none"])
async def test_a_stream_is_translated_as_it_comes(
    gateway: Gateway, replica: Replica, framing: str
) -> None:
    client = await gateway.client()
    await client.send(chat(stream=True))
    wire, request = await replica.request()
    assert request.start == "POST /generate_stream HTTP/1.1"
    await wire.send(reply(b"", EVENTS, framing=framing).removesuffix(b"0\r\n\r\n"))
    await client.nothing()  # the status may still become another

    def framed(data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data) if framing == "chunked" else data

    await wire.send(framed(event("he")))
    head = await client.upto(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"X-Accel-Buffering: no\r\n" in head
    assert b"Transfer-Encoding: chunked\r\n" in head
    assert b'"content": "he"' in await client.upto(b"}\n\n\r\n")
    piece = event("llo")
    await wire.send(framed(piece[:10]))
    await wire.send(framed(piece[10:]))
    assert b'"content": "llo"' in await client.upto(b"}\n\n\r\n")
    await wire.send(framed(event("</s>", **STOP)) + (b"0\r\n\r\n" if framing == "chunked" else b""))
    if framing == "none":
        wire.close()
    assert b'"finish_reason": "stop"' in await client.upto(b"}\n\n\r\n")
    await client.expect(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
    if framing == "chunked":
        await client.send(chat())  # both connections go on
        await wire.message()
        await wire.send(reply(generated()))
        assert (await client.message()).status == 200


async def test_a_stream_for_a_client_of_old(gateway: Gateway, replica: Replica) -> None:
    client = await gateway.client()
    await client.send(chat(stream=True).replace(b"HTTP/1.1", b"HTTP/1.0", 1))
    wire, _ = await replica.request()
    await wire.send(reply(event("a") + event("</s>", **STOP), EVENTS, framing="none"))
    wire.close()
    message = await client.message()
    assert message.closes
    assert message.body.endswith(b"}\n\ndata: [DONE]\n\n")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"messages": "hi"}, "`messages` must be a list"),
        ({"messages": None}, "`messages` must be a list of objects"),
        ({"n": "x"}, "`n` must be a whole number"),
        (
            {"messages": [{"role": "system", "content": "x"}]},
            "Failed to render chat template: no system",
        ),
    ],
)
async def test_what_cannot_be_asked_is_400(
    gateway: Gateway, replica: Replica, call: dict[str, Any], words: str
) -> None:
    client = await gateway.client()
    answer = await client.ask(chat(**call))
    assert answer.status == 400
    assert json.loads(answer.body)["error"]["message"] == words
    assert replica.untouched
    assert gateway.totals().codes == {400: 1}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        ("422 X", b'{"error": "too long", "error_type": "validation"}', "too long"),
        ("429 X", b'{"error": "busy", "error_type": "overloaded"}', "busy"),
        ("503 X", b"starting", "starting"),
    ],
)
async def test_a_refusal_of_the_replica(
    gateway: Gateway, replica: Replica, stream: bool, status: str, body: bytes, message: str
) -> None:
    client = await gateway.client()
    replica.answers = reply(body, status=status)
    answer = await client.ask(chat(stream=stream))
    assert answer.status == int(status[:3])
    assert json.loads(answer.body)["error"]["message"] == message


async def test_a_stream_that_begins_with_an_error_has_its_status(
    gateway: Gateway, replica: Replica
) -> None:
    client = await gateway.client()
    said = b'data:{"error":"Input validation error","error_type":"validation"}\n\n'
    replica.answers = reply(said, EVENTS)
    answer = await client.ask(chat(stream=True))
    assert answer.status == 422
    assert json.loads(answer.body)["error"]["message"] == "Input validation error"


async def test_a_stream_that_ends_with_an_error_says_so(gateway: Gateway, replica: Replica) -> None:
    client = await gateway.client()
    said = b'data:{"error":"CUDA is out of memory","error_type":"generation"}\n\n'
    replica.answers = reply(event("a") + said, EVENTS)
    await client.send(chat(stream=True))
    *_, last = await events(client)
    assert json.loads(last)["error"]["message"] == "CUDA is out of memory"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("body", [b"", b"<html>", b"data: {}\n\n", b"[]"])
async def test_what_is_no_answer_is_502(
    gateway: Gateway, replica: Replica, stream: bool, body: bytes
) -> None:
    client = await gateway.client()
    replica.answers = reply(body)
    answer = await client.ask(chat(stream=stream))
    assert answer.status == 502
    assert json.loads(answer.body)["error"]["code"] == "upstream_error"


@pytest.mark.parametrize(
    "rest", [b"data: {}\n\n", b"", b"data: " + b"x" * 2_000_000], ids=["junk", "end", "endless"]
)
async def test_a_stream_that_breaks_is_cut(gateway: Gateway, replica: Replica, rest: bytes) -> None:
    client = await gateway.client()
    replica.answers = reply(event("a") + rest, EVENTS)
    await client.send(chat(stream=True))
    with pytest.raises(Cut) as cut:
        await client.message()
    assert b"0\r\n\r\n" not in cut.value.seen


async def test_a_replica_that_dies(gateway: Gateway, replica: Replica) -> None:
    client = await gateway.client()
    await client.send(chat())
    wire, _ = await replica.request()
    await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
    wire.close()
    assert (await client.message()).status == 502
    client = await gateway.client()
    await client.send(chat(stream=True))
    wire, _ = await replica.request()
    await wire.send(reply(b"", EVENTS, framing="none") + event("a"))
    await client.upto(b"\r\n\r\n")
    wire.reset()
    with pytest.raises(Cut):
        await client.upto(b"data: [DONE]")


async def test_a_client_that_leaves_ends_the_replica_s_work(
    gateway: Gateway, replica: Replica
) -> None:
    client = await gateway.client()
    await client.send(chat(stream=True))
    wire, _ = await replica.request()
    client.reset()
    assert await wire.gone() == b""
    await until(lambda: gateway.totals().codes == {499: 1})


async def test_a_client_that_leaves_while_its_prompt_is_made(
    gateway: Gateway, replica: Replica
) -> None:
    client = await gateway.client()
    await client.send(chat())
    client.reset()
    await gateway.settle_clients()
    assert gateway.totals().codes == {499: 1}


async def stuck(wire: Wire) -> bool:
    """Nothing of what was written is taken for a while."""
    try:
        async with asyncio.timeout(0.3):
            await wire.writer.drain()
    except TimeoutError:
        return True
    return False


async def test_a_slow_reader_holds_the_replica_back(gateway: Gateway, replica: Replica) -> None:
    client = await gateway.client(receive_buffer=4096)
    await client.send(chat(stream=True))
    wire, _ = await replica.request()
    wire.writer.write(reply(b"", EVENTS, framing="none"))
    piece = event("x" * 1000)
    count = 0
    held = False
    while not held:
        wire.writer.write(piece)
        count += 1
        assert count < 40_000
        held = wire.writer.transport.get_write_buffer_size() > 0 and await stuck(wire)
    wire.writer.write(event("</s>", **STOP))
    wire.close()
    message = await client.message()
    assert message.body.count(b"x" * 1000) == count
    assert message.body.endswith(b"data: [DONE]\n\n")


async def test_limits_count_at_the_service(gateway: Gateway, replica: Replica) -> None:
    gateway.change(rate_limits=(RateLimit("/generate", 0.01, 0),))
    replica.answers = reply(generated())
    client = await gateway.client()
    assert (await client.ask(chat())).status == 200
    assert (await client.ask(chat())).status == 429
    assert (await client.ask(get("/generate"))).status == 429


async def test_an_answer_without_end_is_not_kept(
    gateway: Gateway, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gatewayd.proxy.tgi._ANSWER_MAX", 1000)
    client = await gateway.client()
    replica.answers = reply(b"x" * 2000)
    assert (await client.ask(chat())).status == 502


async def test_bodies_are_bounded(gateway: Gateway, replica: Replica) -> None:
    gateway.change(client_max_body_size=100)
    client = await gateway.client()
    body = chunked(b'{"model": "m", "messages"', b": [" + b" " * 200)
    request = get("/chat/completions", "Transfer-Encoding: chunked", host=HOST, method="POST")
    answer: Message = await client.ask(request + body)
    assert answer.status == 413


async def test_what_the_client_sent_counts_whatever_was_sent_on(
    gateway: Gateway, replica: Replica
) -> None:
    template = TgiFormat("x" * 10_000, "</s>")
    gateway.models[:] = [ModelEntry("main", "m", "chat", 1, template)]
    gateway.publish()
    gateway.change(client_max_body_size=1000)
    client = await gateway.client()
    call = chat()
    size = len(call.partition(b"\r\n\r\n")[2])
    replica.answers = reply(generated())
    assert (await client.ask(call)).status == 200
    replica.stop_listening()
    replica.wires[0].close()
    assert (await client.ask(call)).status == 502
    assert gateway.totals().bytes_in == 2 * size


async def test_too_many_templates_at_a_time(
    gateway: Gateway, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gatewayd.proxy.prompts._RENDERERS_MAX", 0)
    client = await gateway.client()
    answer = await client.ask(chat())
    assert answer.status == 503
    assert answer["Retry-After"] == "1"
