"""How the hop to a router of this family differs from the hop to a replica.

Owns: what the family has in common: its header names, what it passes on. Does not own: obeying
it (proxy), error codes and paths of one router (its plug-in).
"""

from __future__ import annotations

from typing import Final

from gatewayd.core.model import PeerFields, RouterSpec, RouterTraits

TOKEN_HEADER: Final = b"x-request-id-gw"  # they pass on any X-Request-Id-*
ERROR_HEADER: Final = b"x-smg-error-code"

# In both copies of a request: where the decode asks the prefill for its results.
PEER_FIELDS: Final = PeerFields("bootstrap_host", "bootstrap_port", "bootstrap_room")

# Requests that they only hand on. Not /v1/responses and /v1/conversations, whose state they keep.
STEER_PATHS: Final = frozenset(
    {"/v1/chat/completions", "/v1/completions", "/generate", "/v1/embeddings", "/v1/rerank"}
)


def http_traits(
    spec: RouterSpec,
    key: str | None,
    *,
    strip_response: frozenset[bytes],
    unsent_errors: frozenset[bytes],
    allowed_paths: tuple[str, ...],
    steer_paths: frozenset[str] = STEER_PATHS,
    denied_paths: tuple[str, ...] = (),
) -> RouterTraits:
    """`key` is that of the running router, None without one."""
    return RouterTraits(
        request_headers=((b"authorization", f"Bearer {key}".encode()),) if key is not None else (),
        # A client's own Authorization would reach the replica beside ours, its X-SMG-* steer.
        strip_request=frozenset({b"authorization"}),
        strip_request_prefixes=(b"x-smg-", b"x-request-id-"),
        strip_response=strip_response | {ERROR_HEADER, b"server"},
        error_header=ERROR_HEADER,
        unsent_errors=unsent_errors,
        token_header=TOKEN_HEADER,
        routing_key_header=b"x-smg-routing-key",
        # Without a key it goes by Authorization, and that is ours: all would go to one target.
        routing_key_always=spec.policy == "consistent_hashing",
        steer_paths=steer_paths,
        allowed_paths=allowed_paths,
        denied_paths=denied_paths,
        peer_fields=PEER_FIELDS if spec.pd_disaggregation else None,
    )
