"""Chat completions for replicas that speak Text Generation Inference's own API.

Owns: what `/generate` is sent for a chat call, and what its answers are in OpenAI's words.
Does not own: making a prompt of messages (proxy.prompts), the hop (proxy.tgi).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from gatewayd.core.reply import LocalReply, document

FINISH_REASONS: Final = {"length": "length", "eos_token": "stop", "stop_sequence": "stop"}
_ERROR_MAX: Final = 2000  # of a replica's own words that are passed on


class BadCallError(ValueError):
    """A body that is no chat call; the text is for the client."""


@dataclass(frozen=True, slots=True)
class ChatCall:
    """What the adapter takes from the body of a chat call."""

    model: str
    messages: list[Any]
    tools: list[Any] | None
    stream: bool
    include_usage: bool
    n: int
    max_tokens: int | None
    temperature: float
    top_p: float
    seed: int | None
    stop: tuple[str, ...]

    def generate_body(self, prompt: str, eos_token: str) -> bytes:
        """For `/generate`, or `/generate_stream` when it is a stream."""
        parameters: dict[str, Any] = {
            "do_sample": True,
            "stop": list(self.all_stops(eos_token)),
            "best_of": self.n,
            "details": True,
            # It gives the length of the prompt, and is refused for streams.
            "decoder_input_details": not self.stream,
        }
        if self.temperature > 0:
            parameters["temperature"] = self.temperature
        else:  # refused there; it asks for the likeliest token each time
            parameters["do_sample"] = False
        if self.max_tokens is not None:
            parameters["max_new_tokens"] = self.max_tokens
        if self.seed is not None:
            parameters["seed"] = self.seed
        if self.top_p < 1:
            parameters["top_p"] = self.top_p
        return json.dumps({"inputs": prompt, "parameters": parameters}).encode()

    def all_stops(self, eos_token: str) -> tuple[str, ...]:
        return self.stop if eos_token in self.stop else (*self.stop, eos_token)


def read_chat(body: bytes) -> ChatCall:
    """Raises BadCallError. Fields that have no counterpart there are ignored."""
    try:
        call = json.loads(body)
    except ValueError as error:
        raise BadCallError(f"The body is not JSON: {error}") from None
    if not isinstance(call, dict):
        raise BadCallError("The body is not a JSON object")
    messages = _typed(call, "messages", list, None)
    if messages is None or not all(isinstance(message, dict) for message in messages):
        raise BadCallError("`messages` must be a list of objects")
    stop = call.get("stop") or []
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(each, str) for each in stops):
        raise BadCallError("`stop` must be a string or a list of strings")
    options = _typed(call, "stream_options", dict, None) or {}
    most = _typed(call, "max_completion_tokens", int, None)
    return ChatCall(
        model=str(call.get("model")),
        messages=messages,
        tools=_typed(call, "tools", list, None),
        stream=bool(_typed(call, "stream", bool, False)),
        include_usage=options.get("include_usage") is True,
        n=_typed(call, "n", int, 1),
        max_tokens=most if most is not None else _typed(call, "max_tokens", int, None),
        temperature=_typed(call, "temperature", float, 1.0),
        top_p=_typed(call, "top_p", float, 1.0),
        seed=_typed(call, "seed", int, None),
        stop=tuple(stops),
    )


_WORDS: Final = {
    list: "a list",
    dict: "an object",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
}


def _typed(call: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    """The field, `default` when it is absent or null."""
    value = call.get(name)
    if value is None:
        return default
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise BadCallError(f"`{name}` must be {_WORDS[kind]}")
    return value


class Translation:
    """Answers to one call in OpenAI's words. `created` is Unix seconds."""

    def __init__(self, call: ChatCall, eos_token: str, *, id_: str, created: int) -> None:
        self._call = call
        self._stops = call.all_stops(eos_token)
        self._id = id_
        self._created = created
        self._begun = False
        self.finished = False  # the stream has said why it ends

    # --- whole answers

    def whole(self, body: bytes) -> LocalReply | None:
        """None for what is no answer of such a server."""
        try:
            answer = json.loads(body)
            details = answer["details"]
            sequences = [answer | details, *(details.get("best_of_sequences") or ())]
            choices = [
                {
                    "index": index,
                    "message": {
                        "role": "assistant",
                        "content": self._without_stop(sequence["generated_text"]),
                    },
                    "logprobs": None,
                    "finish_reason": _finish_reason(sequence["finish_reason"]),
                }
                for index, sequence in enumerate(sequences)
            ]
            usage = _usage(len(details["prefill"]), details["generated_tokens"])
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        return document({**self._frame("chat.completion"), "choices": choices, "usage": usage})

    # --- streams

    def event(self, data: str) -> tuple[bytes, LocalReply | None]:
        """What one event of the stream is for the client; with a reply when it is an error.
        Raises ValueError for what is none of such a server."""
        try:
            event = json.loads(data)
            if "error" in event:
                return b"", error_reply(500, data.encode())
            token, details = event["token"], event.get("details")
            text = "" if token.get("special") else token["text"]
            frames: list[dict[str, Any]] = []
            if details is not None:
                reason = _finish_reason(details["finish_reason"])
                if reason == "stop":
                    text = self._without_stop(text)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not an event of text generation: {error}") from None
        if text or not self._begun:
            frames.append(self._chunk(self._delta(text), None))
        if details is not None:
            self.finished = True
            frames.append(self._chunk({}, reason))
            if self._call.include_usage:
                usage = _usage(details.get("input_length") or 0, details.get("generated_tokens", 0))
                frames.append(
                    {**self._frame("chat.completion.chunk"), "choices": [], "usage": usage}
                )
        return b"".join(_event(frame) for frame in frames), None

    def _delta(self, text: str) -> dict[str, str]:
        delta = {"content": text}
        if not self._begun:
            self._begun = True
            return {"role": "assistant", **delta}
        return delta

    def _chunk(self, delta: Mapping[str, str], reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return {**self._frame("chat.completion.chunk"), "choices": [choice]}

    # --- both

    def _frame(self, kind: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._call.model,
            "system_fingerprint": "",
        }

    def _without_stop(self, text: str) -> str:
        """The token that ended the text is no part of it."""
        for stop in self._stops:
            if stop and text.endswith(stop):
                return text[: -len(stop)]
        return text


def _finish_reason(reason: str) -> str:
    return FINISH_REASONS.get(reason, reason)


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def _event(frame: object) -> bytes:
    return b"data: %b\n\n" % json.dumps(frame).encode()


DONE: Final = b"data: [DONE]\n\n"


# What such a server calls its errors, where a status would not say more.
_STATUS_OF: Final = {"validation": 422, "overloaded": 429, "generation": 424}


def error_reply(status: int, body: bytes) -> LocalReply:
    """A replica's refusal: its status and its words."""
    words, kind = body[:_ERROR_MAX].decode("utf-8", "replace").strip(), ""
    try:
        said = json.loads(body)
        words, kind = str(said["error"])[:_ERROR_MAX], str(said.get("error_type") or "")
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    if status == 500:
        status = _STATUS_OF.get(kind, status)
    return LocalReply(status, kind or "upstream_error", words or "The replica refused")


def error_event(reply: LocalReply) -> bytes:
    """For a stream that has begun: its status cannot be taken back."""
    error = {"message": reply.message, "type": "server_error", "param": None, "code": reply.code}
    return _event({"error": error})
