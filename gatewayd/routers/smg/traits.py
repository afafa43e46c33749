"""How the hop to an smg differs from the hop to a replica.

Owns: error codes, headers and paths of version 1.13.0. Does not own: obeying them (proxy).
"""

from __future__ import annotations

from typing import Final

from gatewayd.core.model import RouterSpec, RouterTraits
from gatewayd.routers.http_traits import STEER_PATHS, http_traits

# Made before any target was chosen. Not call_upstream_connection_failed: it sends a request again
# when a connection breaks before the answer, so the first try may have reached a replica.
_UNSENT: Final = frozenset(
    {b"no_available_workers", b"no_workers", b"model_not_found", b"server_selection_failed"}
)

# Its routes for clients. Not all of /v1/: with the router's key, which the edge adds, others load
# tokenizers from files and the like.
_ALLOWED: Final = (
    *("/generate", "/rerank", "/v1/chat/completions", "/v1/completions", "/v1/embeddings"),
    *("/v1/rerank", "/v1/classify", "/v1/messages", "/v1/messages/", "/v1/responses"),
    *("/v1/responses/", "/v1/conversations", "/v1/conversations/", "/v1/models", "/v1/models/"),
    *("/v1/audio/transcriptions", "/v1/tokenize", "/v1/detokenize"),
)


def traits(spec: RouterSpec, key: str | None = None) -> RouterTraits:
    """`key` is that of the running router."""
    return http_traits(
        spec,
        key,
        strip_response=frozenset({b"x-smg-routed-worker-id"}),  # an address of ours
        unsent_errors=_UNSENT,
        allowed_paths=_ALLOWED,
        steer_paths=STEER_PATHS | {"/v1/classify", "/v1/messages"},
    )
