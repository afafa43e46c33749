"""The flags and policies of the installed smg that differ from its family's.

Owns: `FLAGS`. Does not own: checking them (http_flags), running it (router).
"""

from __future__ import annotations

from typing import Final

from gatewayd.routers.http_flags import (
    ACCESS,
    BREAKER,
    DISCOVERY,
    LATER,
    OURS,
    RANGES,
    REFUSED,
    Flags,
)

_MANY: Final = 2**31
_ALONE: Final = "each service has one router, and it knows of no other"
_HTTP: Final = "replicas are reached over HTTP/1.1 through gatewayd's bridge"
_TENANTS: Final = "clients are told apart and limited before the router"

FLAGS: Final = Flags(
    distribution="smg",
    package="smg",
    grace_s=1,  # half of it passes idle: it waits for load balancers to notice
    defaults={
        # Without the interval it looks again only after 30 s, whatever the timeout. Shorter than
        # core.reconcile's patience, so that the next registration is not refused as a second one.
        "worker-startup-timeout-secs": "4",
        "worker-startup-check-interval": "1",
        # Its own bound is 1024 per core, and a steered exchange holds its place to the end.
        "max-concurrent-requests": "0",
        "sse-keepalive-secs": "0",  # it would write comments into a replica's quiet stream
        "stream-body-stall-timeout-secs": "0",
        "idle-connection-timeout-secs": "0",  # else it closes what the edge keeps to use again
        "disable-tokenizer-autoload": None,
    },
    refused={
        **REFUSED,
        **dict.fromkeys(("idle-connection-timeout-secs", "disable-tokenizer-autoload"), OURS),
        "stream-body-stall-timeout-secs": "use timeouts",
        "cors-allowed-origins": "use cors",
        "routing-key-headers": "use routing_key_header",
        "remove-unhealthy-workers": BREAKER,
        "worker-overload-shed": "gatewayd would send what it sheds to a replica by itself",
        **dict.fromkeys(("epd-disaggregation", "encode", "encode-"), LATER),
        **dict.fromkeys(("prefill-max-", "prefill-queue-", "pd-admission-"), _TENANTS),
        **dict.fromkeys(("discovery-", "router-selector", "model-id-from"), DISCOVERY),
        **dict.fromkeys(("enable-mesh", "mesh-"), _ALONE),
        **dict.fromkeys(("backend", "zmq-engine-count", "upstream-http2"), _HTTP),
        **dict.fromkeys(("trust-tenant-header", "tenant-", "priority-scheduler-"), _TENANTS),
        **dict.fromkeys(("enable-rl", "rl-"), ACCESS),
    },
    ranges={
        **RANGES,
        "rate-limit-tokens-per-second": (0, _MANY),
        "load-monitor-interval": (1, _MANY),
        "job-queue-concurrency": (1, 100_000),
        "job-queue-capacity": (1, 1_000_000),
        "worker-warmup-share": (0, 1),
        "worker-warmup-thin-ratio": (0, 1),
        "worker-overload-token-usage": (0.001, 1),
        "worker-overload-waiting-requests": (1, _MANY),
        "history-memory-max-responses": (1, _MANY),
        "history-memory-max-items": (1, _MANY),
        **dict.fromkeys(
            (
                *("worker-stall-secs", "worker-wedge-secs", "worker-stale-secs"),
                *("worker-warmup-secs", "worker-warmup-blocks", "worker-warmup-divert-every"),
                *("least-load-mean-prefill-tokens", "least-load-max-waiting-requests"),
                *("max-background-responses", "header-read-timeout-secs"),
                "upstream-pool-idle-timeout-secs",
            ),
            (0, _MANY),
        ),
    },
    unfit_policies={
        "prefix_hash": "as long as it repeats nothing by itself it does not read prompts: "
        "every request would go to one replica",
        "passthrough": "every request would go to one replica",
    },
)
