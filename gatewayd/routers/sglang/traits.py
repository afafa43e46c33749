"""How the hop to an sglang-router differs from the hop to a replica.

Owns: header names and error codes of version 0.3.2. Does not own: obeying them (proxy).
"""

from __future__ import annotations

from typing import Final

from gatewayd.core.model import RouterSpec, RouterTraits

TOKEN_HEADER: Final = b"x-request-id-gw"  # it passes on any X-Request-Id-*

# These two choose by a key that the client sends; without it they cannot do what they are for.
_BY_ROUTING_KEY: Final = frozenset({"manual", "consistent_hashing"})

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
    by_key = spec.policy in _BY_ROUTING_KEY
    return RouterTraits(
        request_headers=headers,
        # A client's own Authorization would reach the replica beside ours, its X-SMG-* steer.
        strip_request=frozenset({b"authorization", b"x-smg-target-worker", TOKEN_HEADER}),
        strip_request_prefixes=() if by_key else (b"x-smg-",),
        strip_response=_STRIP_RESPONSE,
        error_header=b"x-smg-error-code",
        unsent_errors=_UNSENT,
        token_header=TOKEN_HEADER,
        allowed_paths=("/generate", "/chat/completions", "/v1/"),
    )
