"""How the hop to an sglang-router differs from the hop to a replica.

Owns: header names and error codes of version 0.3.2. Does not own: obeying them (proxy).
"""

from __future__ import annotations

from typing import Final

from gatewayd.core.model import RouterSpec, RouterTraits

TOKEN_HEADER: Final = b"x-request-id-gw"  # it passes on any X-Request-Id-*

# Requests that it only hands on. Not /v1/responses and /v1/conversations, whose state it keeps.
_STEER_PATHS: Final = frozenset(
    {"/v1/chat/completions", "/v1/completions", "/generate", "/v1/embeddings", "/v1/rerank"}
)

# It adds its own CORS headers and `vary`, overriding the replica's; the edge owns CORS.
_STRIP_RESPONSE: Final = frozenset(
    {
        *{b"vary", b"server", b"x-smg-error-code"},
        *{b"access-control-allow-origin", b"access-control-expose-headers"},
        *{b"access-control-allow-credentials", b"access-control-allow-methods"},
        *{b"access-control-allow-headers", b"access-control-max-age"},
    }
)

# Made before any target was chosen. Not call_upstream_request_error: that is a refused connection
# and also one that broke after the replica had begun to work.
_UNSENT: Final = frozenset({b"no_available_workers", b"no_workers", b"server_selection_failed"})


def traits(spec: RouterSpec, key: str | None = None) -> RouterTraits:
    """`key` is that of the running router."""
    headers = ((b"authorization", f"Bearer {key}".encode()),) if key is not None else ()
    return RouterTraits(
        request_headers=headers,
        # A client's own Authorization would reach the replica beside ours, its X-SMG-* steer.
        strip_request=frozenset({b"authorization"}),
        strip_request_prefixes=(b"x-smg-", b"x-request-id-"),
        strip_response=_STRIP_RESPONSE,
        error_header=b"x-smg-error-code",
        unsent_errors=_UNSENT,
        token_header=TOKEN_HEADER,
        routing_key_header=b"x-smg-routing-key",
        steer_paths=_STEER_PATHS,
        allowed_paths=("/generate", "/chat/completions", "/v1/"),
    )
