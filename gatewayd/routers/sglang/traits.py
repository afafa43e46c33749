"""How the hop to an sglang-router differs from the hop to a replica.

Owns: error codes, headers and paths of version 0.3.2. Does not own: obeying them (proxy).
"""

from __future__ import annotations

from typing import Final

from gatewayd.core.model import RouterSpec, RouterTraits
from gatewayd.routers.http_traits import http_traits

# It adds its own CORS headers and `vary`, overriding the replica's; the edge owns CORS.
_STRIP_RESPONSE: Final = frozenset(
    {
        *{b"vary", b"access-control-allow-origin", b"access-control-expose-headers"},
        *{b"access-control-allow-credentials", b"access-control-allow-methods"},
        *{b"access-control-allow-headers", b"access-control-max-age"},
    }
)

# Made before any target was chosen. Not call_upstream_request_error: that is a refused connection
# and also one that broke after the replica had begun to work.
_UNSENT: Final = frozenset({b"no_available_workers", b"no_workers", b"server_selection_failed"})


def traits(spec: RouterSpec, key: str | None = None) -> RouterTraits:
    """`key` is that of the running router."""
    return http_traits(
        spec,
        key,
        strip_response=_STRIP_RESPONSE,
        unsent_errors=_UNSENT,
        allowed_paths=("/generate", "/chat/completions", "/v1/"),
        denied_paths=("/v1/tokenizers", "/v1/tokenizers/"),  # loads files of this machine
    )
