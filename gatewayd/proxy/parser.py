"""aiohttp's request parser, as a client connection uses it.

Owns: how it is made. Does not own: what it parses for (connection).
"""

from __future__ import annotations

from aiohttp.http_parser import HttpRequestParser
from aiohttp.web_protocol import RequestHandler


def one_by_one(protocol: RequestHandler) -> HttpRequestParser:
    """Like aiohttp's own, but it stops behind each message and keeps the rest raw: a request is
    parsed when its turn comes, and what is wrong with it is said in its turn."""
    return HttpRequestParser(
        protocol,
        protocol._loop,
        protocol._read_bufsize,
        max_line_size=protocol.max_line_size,
        max_field_size=protocol.max_field_size,
        max_headers=protocol.max_headers,
        auto_decompress=False,
        max_msg_queue_size=1,
    )
