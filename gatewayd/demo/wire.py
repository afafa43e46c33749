"""The JSON of a demo replica: what it reads from a request and the objects it answers with.

Owns: parsing and checking request bodies; the shapes of OpenAI's chat and text completions and of
SGLang's `/generate`. Does not own: HTTP and pacing (demo.replica), the words (demo.speech).
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from gatewayd.demo.speech import Ask, Speech

Json = dict[str, Any]


class RequestError(ValueError):
    """The body cannot be served; `param` names the field that is wrong."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param

    def as_json(self) -> Json:
        error = {"message": str(self), "type": "invalid_request_error", "param": self.param}
        return {"error": {**error, "code": None}}


@dataclass(frozen=True, slots=True)
class Request:
    ask: Ask
    stream: bool = False
    include_usage: bool = False


def read_body(raw: bytes) -> Json:
    try:
        body = json.loads(raw)
    except ValueError as error:
        raise RequestError(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise RequestError("the body must be a JSON object")
    return body


def _field(body: Json, name: str, kind: type, default: Any = None) -> Any:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise RequestError(f"`{name}` must be {kind.__name__}, not {type(value).__name__}", name)
    return value


def _limits(body: Json, *names: str) -> Json:
    """Keyword arguments of an Ask from sampling fields; the first of `names` that is set counts."""
    limit: int | None = None
    for name in names:
        limit = limit if limit is not None else _field(body, name, int)
        if limit is not None and limit < 1:
            raise RequestError(f"`{name}` must be at least 1", name)
    if _field(body, "n", int, 1) != 1:
        raise RequestError("this demo makes one choice a request: `n` must be 1", "n")
    stop = body.get("stop")
    stops = [stop] if isinstance(stop, str) else [] if stop is None else stop
    if not isinstance(stops, list) or not all(isinstance(s, str) and s for s in stops):
        raise RequestError("`stop` must be a string or a list of strings, none empty", "stop")
    ignore_eos = _field(body, "ignore_eos", bool, False)
    if ignore_eos and limit is None:
        raise RequestError(
            f"`ignore_eos` needs `{names[0]}`: the text would never end", "ignore_eos"
        )
    return {"max_tokens": limit, "stop": tuple(stops), "ignore_eos": ignore_eos}


def _request(body: Json, ask: Ask) -> Request:
    stream = _field(body, "stream", bool, False)
    options = _field(body, "stream_options", dict)
    if options is not None and not stream:
        raise RequestError("`stream_options` is only for streams", "stream_options")
    return Request(ask, stream, bool(options and _field(options, "include_usage", bool, False)))


def _content(message: Any, where: str) -> str:
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        return "".join(text for text in texts if isinstance(text, str))
    if isinstance(message, dict) and message.get("role") != "user" and content is None:
        return ""  # an assistant's tool call has no content
    raise RequestError(f"`{where}` needs a `content` of text", where)


def read_chat(body: Json) -> Request:
    """It speaks about the last message, as a chat does."""
    messages = _field(body, "messages", list)
    if not messages:
        raise RequestError("`messages` must be a list with at least one message", "messages")
    texts = [_content(message, f"messages[{i}]") for i, message in enumerate(messages)]
    return _request(body, Ask(texts[-1], **_limits(body, "max_completion_tokens", "max_tokens")))


def read_completion(body: Json) -> Request:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise RequestError("`prompt` must be one string: this demo takes no batches", "prompt")
    limits = _limits(body, "max_tokens")
    if limits["max_tokens"] is None:
        limits["max_tokens"] = 16  # OpenAI's default for this path
    return _request(body, Ask(prompt, **limits))


def read_generate(body: Json) -> Request:
    text = body.get("text")
    if not isinstance(text, str):
        raise RequestError("`text` must be one string: this demo takes no batches", "text")
    sampling = _field(body, "sampling_params", dict, {})
    limits = _limits(sampling, "max_new_tokens")
    if limits["max_tokens"] is None:
        limits["max_tokens"] = 128  # the engine's own default
    return _request(body, Ask(text, **limits))


def usage(speech: Speech) -> Json:
    asked, said = speech.ask.prompt_tokens, speech.tokens
    return {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}


class Answer(Protocol):
    """One answer, whole or as the objects of a stream in their order."""

    def whole(self, text: str) -> Json: ...
    def opening(self) -> Iterator[Json]: ...
    def piece(self, text: str) -> Json: ...
    def closing(self, include_usage: bool) -> Iterator[Json]: ...


@dataclass(slots=True)
class _OpenAI:
    """What chat and text completions share: the envelope."""

    speech: Speech
    model: str
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))
    prefix: ClassVar[str]
    kind: ClassVar[str]
    chunk_kind: ClassVar[str]

    def __post_init__(self) -> None:
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"

    def _envelope(self, kind: str, *choices: Json) -> Json:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": list(choices),
        }

    def _choice(self, content: Json, reason: str | None = None) -> Json:
        return {"index": 0, **content, "logprobs": None, "finish_reason": reason}

    def _usage_chunk(self) -> Json:
        return {**self._envelope(self.chunk_kind), "usage": usage(self.speech)}


class ChatAnswer(_OpenAI):
    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def whole(self, text: str) -> Json:
        message = {"role": "assistant", "content": text}
        choice = self._choice({"message": message}, self.speech.finish_reason)
        return {**self._envelope(self.kind, choice), "usage": usage(self.speech)}

    def _delta(self, delta: Json, reason: str | None = None) -> Json:
        return self._envelope(self.chunk_kind, self._choice({"delta": delta}, reason))

    def opening(self) -> Iterator[Json]:
        yield self._delta({"role": "assistant", "content": ""})

    def piece(self, text: str) -> Json:
        return self._delta({"content": text})

    def closing(self, include_usage: bool) -> Iterator[Json]:
        yield self._delta({}, self.speech.finish_reason)
        if include_usage:
            yield self._usage_chunk()


class CompletionAnswer(_OpenAI):
    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def whole(self, text: str) -> Json:
        choice = self._choice({"text": text}, self.speech.finish_reason)
        return {**self._envelope(self.kind, choice), "usage": usage(self.speech)}

    def opening(self) -> Iterator[Json]:
        return iter(())

    def piece(self, text: str) -> Json:
        return self._envelope(self.kind, self._choice({"text": text}))

    def closing(self, include_usage: bool) -> Iterator[Json]:
        choice = self._choice({"text": ""}, self.speech.finish_reason)
        yield self._envelope(self.kind, choice)
        if include_usage:
            yield self._usage_chunk()


@dataclass(slots=True)
class GenerateAnswer:
    """SGLang's own shape: each event of a stream repeats the whole text so far."""

    speech: Speech
    model: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    said: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def whole(self, text: str) -> Json:
        reason: Json | None = None
        if self.speech.finish_reason == "length":
            reason = {"type": "length", "length": self.speech.ask.max_tokens}
        elif self.speech.finish_reason is not None:
            reason = {"type": "stop", "matched": self.speech.matched}
        meta = {
            "id": self.id,
            "finish_reason": reason,
            "prompt_tokens": self.speech.ask.prompt_tokens,
            "completion_tokens": self.speech.tokens,
            "cached_tokens": 0,
            "e2e_latency": time.monotonic() - self.began,
        }
        return {"text": text, "meta_info": meta}

    def opening(self) -> Iterator[Json]:
        return iter(())

    def piece(self, text: str) -> Json:
        self.said.append(text)
        event = self.whole("".join(self.said))
        event["meta_info"]["finish_reason"] = None
        return event

    def closing(self, include_usage: bool) -> Iterator[Json]:
        yield self.whole("".join(self.said))
