"""What the replica says: fixed answers, and events of a fixed length.

Owns: the bytes. Does not own: when they are sent (replica), what a client makes of them.

Each event carries its number and the monotonic time of its write in fixed places, so that a
client on the same machine knows what was lost and how long the rest took.
"""

from __future__ import annotations

import json
import time

BLOB_BYTES = 64 * 1024 * 1024
_EVENT_A = (
    b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1,"model":"bench",'
    b'"choices":[{"index":0,"delta":{"content":" token"},"finish_reason":null}],"n":'
)
_EVENT_BYTES = len(_EVENT_A) + 10 + len(b',"t":') + 19 + len(b"}\n\n")
_CHUNK_HEAD = b"%x\r\n" % _EVENT_BYTES + _EVENT_A
DONE = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"

STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
    b"Transfer-Encoding: chunked\r\n"
)


def reply(body: bytes, status: bytes = b"200 OK", kind: bytes = b"application/json") -> bytes:
    return (
        b"HTTP/1.1 %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b"
        % (status, kind, len(body), body)
    )  # fmt: skip


def event(number: int) -> bytes:
    """One chunk with one event; always the same length."""
    return b'%b%010d,"t":%019d}\n\n\r\n' % (_CHUNK_HEAD, number, time.monotonic_ns())


def _chat_body() -> bytes:
    message = {"role": "assistant", "content": "The answer of a replica that does not think. " * 4}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 12, "completion_tokens": 40, "total_tokens": 52}
    head = {"id": "chatcmpl-bench", "object": "chat.completion", "created": 1, "model": "bench"}
    return json.dumps({**head, "choices": [choice], "usage": usage}).encode()


_INFO = {
    "model_path": "bench",
    "tokenizer_path": "bench",
    "served_model_name": "bench",
    "is_generation": True,
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "tp_size": 1,
    "dp_size": 1,
    "load_balance_method": "round_robin",
    "disaggregation_mode": "null",
    "status": "ready",
}
_SMALL = reply(
    b"A small answer, as of a health page or of a list of models. " * 2, kind=b"text/plain"
)
ECHO = reply(json.dumps({"ok": True, "fill": "x" * (2048 - 23)}).encode())
CHAT = reply(_chat_body())
PLAIN: dict[bytes, bytes] = {
    b"/small": _SMALL,
    b"/health": reply(b"ok", kind=b"text/plain"),
    b"/server_info": reply(json.dumps(_INFO).encode()),
    b"/get_server_info": reply(json.dumps(_INFO).encode()),
    b"/model_info": reply(json.dumps(_INFO).encode()),
    b"/get_model_info": reply(json.dumps(_INFO).encode()),
    b"/get_load": reply(b'[{"dp_rank":0,"num_reqs":0,"num_waiting_reqs":0,"num_tokens":0}]'),
    b"/v1/models": reply(b'{"object":"list","data":[{"id":"bench","object":"model","created":1}]}'),
}
