"""What a client is told whose request aiohttp could not parse.

Owns: the mapping from aiohttp's parse errors. Does not own: closing (connection).
"""

from __future__ import annotations

from aiohttp.http_exceptions import HttpProcessingError, LineTooLong

from gatewayd.core import reply as replies
from gatewayd.core.model import Limits
from gatewayd.core.reply import LocalReply


def refusal_of(error: HttpProcessingError, limits: Limits) -> LocalReply:
    if isinstance(error, LineTooLong):
        if limits.request_line_size in error.args:
            return replies.URI_TOO_LONG
        return replies.HEAD_TOO_LARGE
    if "Too many headers" in error.message:
        return replies.HEAD_TOO_LARGE
    return replies.bad_request("The request is malformed")
