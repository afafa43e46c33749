"""What a request to a model endpoint asks for, and the answers that need no replica.

Owns: its paths, finding `model` in a body, the list of models, the words of refusals.
Does not own: who may ask, reading the body, what follows (proxy.models).

Of a body nothing but `model` is read, and no more of it than stands before its end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import unquote

from gatewayd.core import reply as replies
from gatewayd.core.json_fields import FieldChanger, HeldTooLongError
from gatewayd.core.reply import LocalReply
from gatewayd.core.snapshot import ModelTarget

OPERATIONS: Final = frozenset(("chat/completions", "completions", "embeddings", "responses"))
_SCAN_SIZE: Final = 64 * 1024  # of a body looked at in one step
_NAME_MAX: Final = 1024  # of a model


@dataclass(frozen=True, slots=True)
class ListCall:
    pass


@dataclass(frozen=True, slots=True)
class DescribeCall:
    model: str


@dataclass(frozen=True, slots=True)
class Operation:
    """`name` is one of OPERATIONS; `query` has its question mark."""

    name: str
    query: str


Call = ListCall | DescribeCall | Operation

NOT_FOUND: Final = LocalReply(404, "not_found", "This is not a path of the model endpoint")
NO_MODEL: Final = LocalReply(
    400, "invalid_body", "The body is not a JSON object with the string `model`"
)


def read_call(method: str, target: str) -> Call | LocalReply:
    """Paths are the same with and without `/v1`."""
    path, mark, query = target.partition("?")
    path = path.removeprefix("/v1/") if path.startswith("/v1/") else path[1:]
    call: Call
    if path == "models":
        call = ListCall()
    elif path.startswith("models/") and len(path) > len("models/"):
        # Names hold slashes, which some clients encode and some do not.
        call = DescribeCall(unquote(path.removeprefix("models/")))
    elif path in OPERATIONS:
        return Operation(path, mark + query) if method == "POST" else _wrong_method(b"POST")
    else:
        return NOT_FOUND
    return call if method in ("GET", "HEAD") else _wrong_method(b"GET, HEAD")


def _wrong_method(allowed: bytes) -> LocalReply:
    return LocalReply(405, "method_not_allowed", "Method Not Allowed", ((b"Allow", allowed),))


def unknown_model(name: str, project: str) -> LocalReply:
    shown = name if len(name) <= _NAME_MAX else name[:_NAME_MAX] + "..."
    return LocalReply(404, "model_not_found", f"Model {shown} not found in project {project}")


def not_offered(name: str, operation: str) -> LocalReply:
    return LocalReply(404, "not_found", f"Model {name} does not offer {operation}")


def forbidden(project: str) -> LocalReply:
    return LocalReply(
        403,
        "forbidden",
        f"Unauthenticated or unauthorized to access project {project}",
        rejection="auth",
    )


def model_list(models: Iterable[ModelTarget], project: str) -> LocalReply:
    return replies.document(
        {"object": "list", "data": [_model(model, project) for model in models]}
    )


def model_description(model: ModelTarget, project: str) -> LocalReply:
    return replies.document(_model(model, project))


def _model(model: ModelTarget, project: str) -> dict[str, Any]:
    return {
        "object": "model",
        "id": model.name,
        "created": model.created,
        "owned_by": project,
    }


class ModelName:
    """Finds the value of the top-level field `model` of a JSON object that comes in pieces."""

    def __init__(self) -> None:
        self.known = False  # `value` is final
        self.value: str | None = None  # None: there is none, or it is no string
        self._fields = FieldChanger(("model",), self._found)

    def feed(self, data: bytes) -> bool:
        """Whether it is known now; the rest need not be fed."""
        for start in range(0, len(data), _SCAN_SIZE):
            try:
                self._fields.feed(data[start : start + _SCAN_SIZE])
            except HeldTooLongError:
                self.known = True
            if self.known:
                break
        return self.known

    def _found(self, found: Mapping[str, Any]) -> Mapping[str, Any]:
        if self.known:  # it stands there twice, and whether both are read depends on the pieces
            return {}
        self.known = True
        value = found.get("model")
        if isinstance(value, str) and value:
            self.value = value
        return {}


def in_openai_shape(reply: LocalReply) -> LocalReply:
    """Where every client is one of OpenAI's API, whatever it says it accepts."""
    if reply.document or not reply.code:
        return reply
    return replace(reply, document=replies.body(reply, as_json=True)[1])
