from __future__ import annotations

import json
from typing import Any

import pytest

from gatewayd.core.tgi import BadCallError, Translation, error_reply, read_chat

EOS = "</s>"


def call(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}


def parameters(**fields: Any) -> dict[str, Any]:
    sent = json.loads(read_chat(json.dumps(call(**fields)).encode()).generate_body("p", EOS))
    assert sent.keys() == {"inputs", "parameters"}
    assert sent["inputs"] == "p"
    found: dict[str, Any] = sent["parameters"]
    return found


def test_what_is_not_said_is_left_to_the_replica() -> None:
    assert parameters() == {
        "do_sample": True,
        "stop": [EOS],
        "best_of": 1,
        "details": True,
        "decoder_input_details": True,
        "temperature": 1.0,
    }


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_tokens": 7}, {"max_new_tokens": 7}),
        ({"max_tokens": 7, "max_completion_tokens": 8}, {"max_new_tokens": 8}),
        ({"stop": "x"}, {"stop": ["x", EOS]}),
        ({"stop": ["x", EOS]}, {"stop": ["x", EOS]}),
        ({"stop": None}, {"stop": [EOS]}),
        ({"seed": 3}, {"seed": 3}),
        ({"temperature": 0.5}, {"temperature": 0.5, "do_sample": True}),
        ({"temperature": 2}, {"temperature": 2.0}),
        ({"n": 3}, {"best_of": 3}),
        ({"top_p": 0.5}, {"top_p": 0.5}),
        ({"stream": True}, {"decoder_input_details": False}),
        ({"tools": [], "logit_bias": {"1": 2}, "user": "u"}, {}),
    ],
)
def test_what_a_call_becomes(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    assert parameters(**fields).items() >= expected.items()


def test_the_likeliest_token_each_time_is_no_sampling() -> None:
    found = parameters(temperature=0)
    assert found["do_sample"] is False
    assert "temperature" not in found


def test_every_token_may_be_chosen_by_default() -> None:
    assert "top_p" not in parameters(top_p=1)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "not JSON"),
        (b"[]", "not a JSON object"),
        (b'{"model": "m"}', "`messages`"),
        (b'{"messages": ["hi"]}', "`messages`"),
        (json.dumps(call(stop=1)).encode(), "`stop`"),
        (json.dumps(call(stop=[1])).encode(), "`stop`"),
        (json.dumps(call(n="1")).encode(), "`n` must be a whole number"),
        (json.dumps(call(n=True)).encode(), "`n` must be a whole number"),
        (json.dumps(call(stream=1)).encode(), "`stream` must be true or false"),
        (json.dumps(call(max_tokens=1.5)).encode(), "`max_tokens`"),
        (json.dumps(call(stream_options=[])).encode(), "`stream_options` must be an object"),
        (b"\xff", "not JSON"),
    ],
)
def test_what_is_no_call(body: bytes, words: str) -> None:
    with pytest.raises(BadCallError, match=words):
        read_chat(body)


# --- answers


def translation(**fields: Any) -> Translation:
    return Translation(
        read_chat(json.dumps(call(**fields)).encode()), EOS, id_="chatcmpl-1", created=5
    )


def whole(text: str = "hello", reason: str = "eos_token", **details: Any) -> bytes:
    return json.dumps(
        {
            "generated_text": text,
            "details": {
                "finish_reason": reason,
                "generated_tokens": 3,
                "prefill": [{"id": 1}, {"id": 2}],
                **details,
            },
        }
    ).encode()


def test_a_whole_answer() -> None:
    reply = translation().whole(whole())
    assert reply is not None
    assert json.loads(reply.document) == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 5,
        "model": "m",
        "system_fingerprint": "",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "hello"},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5},
    }


@pytest.mark.parametrize(
    ("text", "stop", "reason", "content", "finish"),
    [
        ("hello</s>", None, "eos_token", "hello", "stop"),
        ("hello END", [" END"], "stop_sequence", "hello", "stop"),
        ("hello</s></s>", None, "eos_token", "hello</s>", "stop"),
        ("hello", None, "length", "hello", "length"),
        ("hello", None, "new_reason", "hello", "new_reason"),
        ("", None, "eos_token", "", "stop"),
    ],
)
def test_how_an_answer_ends(
    text: str, stop: list[str] | None, reason: str, content: str, finish: str
) -> None:
    reply = translation(stop=stop).whole(whole(text, reason))
    assert reply is not None
    (choice,) = json.loads(reply.document)["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (content, finish)


def test_several_answers_at_once() -> None:
    others = [{"generated_text": "two</s>", "finish_reason": "length"}]
    reply = translation(n=2).whole(whole("one", best_of_sequences=others))
    assert reply is not None
    choices = json.loads(reply.document)["choices"]
    assert [(c["index"], c["message"]["content"], c["finish_reason"]) for c in choices] == [
        (0, "one", "stop"),
        (1, "two", "length"),
    ]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"{}", b'{"generated_text": "x"}', b'{"details": 1}', b"null"]
)
def test_what_is_no_answer(body: bytes) -> None:
    assert translation().whole(body) is None


def token(text: str, *, special: bool = False, **more: Any) -> str:
    return json.dumps({"token": {"id": 1, "text": text, "special": special}, **more})


def frames(translation: Translation, *events: str) -> list[dict[str, Any]]:
    data = b"".join(translation.event(event)[0] for event in events)
    assert data.endswith(b"\n\n")
    return [json.loads(line.removeprefix("data: ")) for line in data.decode().split("\n\n")[:-1]]


def test_a_stream() -> None:
    stream = translation(stream=True)
    details = {"finish_reason": "eos_token", "generated_tokens": 3}
    found = frames(stream, token("he"), token("llo"), token(EOS, special=True, details=details))
    assert stream.finished
    assert {frame["object"] for frame in found} == {"chat.completion.chunk"}
    assert [frame["choices"][0]["delta"] for frame in found] == [
        {"role": "assistant", "content": "he"},
        {"content": "llo"},
        {},
    ]
    assert [frame["choices"][0]["finish_reason"] for frame in found] == [None, None, "stop"]


def test_each_event_is_passed_on_at_once() -> None:
    stream = translation(stream=True)
    assert b'"he"' in stream.event(token("he"))[0]
    assert not stream.finished


@pytest.mark.parametrize(
    ("last", "reason", "texts"),
    [
        (token("!"), "length", ["a", "!"]),
        (token("b END"), "stop_sequence", ["a", "b"]),
        (token(" END"), "stop_sequence", ["a"]),
    ],
)
def test_the_last_token_of_a_stream(last: str, reason: str, texts: list[str]) -> None:
    stream = translation(stream=True, stop=" END")
    event = json.loads(last) | {"details": {"finish_reason": reason, "generated_tokens": 2}}
    found = frames(stream, token("a"), json.dumps(event))
    deltas = [frame["choices"][0]["delta"] for frame in found]
    assert [delta["content"] for delta in deltas if delta] == texts


def test_the_usage_of_a_stream_when_it_is_asked_for() -> None:
    stream = translation(stream=True, stream_options={"include_usage": True})
    details = {"finish_reason": "length", "generated_tokens": 2, "input_length": 7}
    *_, last = frames(stream, token("a"), token("b", details=details))
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}


def test_an_error_in_a_stream() -> None:
    event = json.dumps({"error": "Model is overloaded", "error_type": "overloaded"})
    data, reply = translation(stream=True).event(event)
    assert data == b""
    assert reply is not None
    assert (reply.status, reply.code, reply.message) == (429, "overloaded", "Model is overloaded")


@pytest.mark.parametrize("event", ["", "{", "[]", "1", "{}", '{"token": 1}', '{"token": {}}'])
def test_what_is_no_event(event: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        translation(stream=True).event(event)


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (
            422,
            b'{"error": "too long", "error_type": "validation"}',
            (422, "validation", "too long"),
        ),
        (500, b'{"error": "busy", "error_type": "overloaded"}', (429, "overloaded", "busy")),
        (404, b"no such path", (404, "upstream_error", "no such path")),
        (503, b"", (503, "upstream_error", "The replica refused")),
        (500, b"[1]", (500, "upstream_error", "[1]")),
    ],
)
def test_refusals_keep_their_words(
    status: int, body: bytes, expected: tuple[int, str, str]
) -> None:
    reply = error_reply(status, body)
    assert (reply.status, reply.code, reply.message) == expected
