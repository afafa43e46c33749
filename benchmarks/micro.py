"""Microseconds per decision of the core: which step of a request costs what.

Owns: calling each decision with arguments as a chat completion has them. Does not own: load and
comparison with others (run.py).

    python benchmarks/micro.py [--only auth,limit] [--json]

A decision whose module is not there, or has another shape by now, is skipped and says so.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import timeit
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

Decision = Callable[[], object]
_REPEATS = 7

# As curl and the openai package send them, and as uvicorn answers.
REQUEST = (
    (b"Host", b"llama.example.com"),
    (b"Accept-Encoding", b"gzip, deflate"),
    (b"Connection", b"keep-alive"),
    (b"Accept", b"application/json"),
    (b"Content-Type", b"application/json"),
    (b"User-Agent", b"OpenAI/Python 1.60.0"),
    (b"X-Stainless-Lang", b"python"),
    (b"X-Stainless-Package-Version", b"1.60.0"),
    (b"X-Stainless-OS", b"Linux"),
    (b"X-Stainless-Runtime", b"CPython"),
    (b"Authorization", b"Bearer 3f0c7f7fd8a14a0ea1c0f3e6c3f5a2bd"),
    (b"Content-Length", b"412"),
)
RESPONSE = (
    (b"date", b"Mon, 02 Nov 2026 10:00:00 GMT"),
    (b"server", b"uvicorn"),
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"transfer-encoding", b"chunked"),
)
PATH = "/v1/chat/completions"


def route() -> Decision:
    from gatewayd.core.routing import host_name, split_target

    targets = {f"service{n}.example.com": n for n in range(100)}

    def decide() -> object:
        host = host_name(b"Service7.example.com:8080")
        split_target(PATH, host)
        return targets[host]

    return decide


def rule_path() -> Decision:
    from gatewayd.core.routing import normal_path, path_allowed

    allowed = ("/generate", "/chat/completions", "/v1/")
    return lambda: path_allowed(normal_path(PATH), allowed)


def encoded_path() -> Decision:
    from gatewayd.core.routing import normal_path

    return lambda: normal_path("/v1//chat/%63ompletions/../completions?x=1")


def request_headers() -> Decision:
    from gatewayd.core.headers import scan_request

    return lambda: scan_request(REQUEST)


def response_headers() -> Decision:
    from gatewayd.core.headers import read_response

    fields = b"".join(b"%b: %b\r\n" % field for field in RESPONSE)
    head = b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n"
    return lambda: read_response(head)


def token() -> Decision:
    from gatewayd.core.auth import bearer_token, index_tokens, known_token, token_digest
    from gatewayd.core.model import Token

    secrets = [b"%032x" % n for n in range(100)]
    index = index_tokens(tuple(Token(f"t{n}", token_digest(s)) for n, s in enumerate(secrets)))
    header = b"Bearer " + secrets[50]

    def decide() -> object:
        presented = bearer_token(header)
        return presented is not None and known_token(index, presented)

    return decide


def limit_key() -> Decision:
    from gatewayd.core.model import RateLimit
    from gatewayd.core.ratelimit import compile_limits, longest_prefix

    rules = compile_limits("main/llama", [RateLimit("/", 4, 9), RateLimit("/v1/", 100, 100)])

    def decide() -> object:
        rule = longest_prefix(rules, PATH)
        return rule is not None and rule.key(b"192.0.2.17")

    return decide


def bucket_local() -> Decision:
    from gatewayd.net.buckets import LocalStore

    store = LocalStore()
    return lambda: store.take(b"0123456789abcdef", 1_000_000, 1_000_000_000, 1_000_000)


def bucket_shared() -> Decision:
    from gatewayd.net.buckets import SharedStore

    store = SharedStore.create()
    return lambda: store.take(b"0123456789abcdef", 1_000_000, 1_000_000_000, 1_000_000)


def pick_of_four() -> Decision:
    from gatewayd.core.balancer import Ejections, pick
    from gatewayd.core.model import Endpoint, UnixAddress
    from gatewayd.net.loads import LoadTable

    table = LoadTable.create(slots=8)
    endpoints = tuple(
        Endpoint(id=f"e{n}", address=UnixAddress(f"/run/{n}.sock"), index=n) for n in range(4)
    )
    ejections = Ejections()
    return lambda: pick(
        endpoints, table, balance="least_requests", salt=3, ejections=ejections, now=1.0
    )


def count_in_flight() -> Decision:
    from gatewayd.net.loads import LoadTable

    created = LoadTable.create(slots=8)
    table = LoadTable.attach(os.dup(created.fd), 8, 0)

    def decide() -> None:
        table.add(3)
        table.done(3)

    return decide


def retry() -> Decision:
    from gatewayd.core.retry import Failure, Sent, decide

    return lambda: decide(
        attempt=1,
        failure=Failure.CONNECT,
        sent=Sent.NOTHING,
        idempotent=False,
        reused=False,
        endpoints=3,
    )


def real_client() -> Decision:
    from gatewayd.core.clients import ClientAddresses

    addresses = ClientAddresses(["10.0.0.0/8"])
    return lambda: addresses.client("10.0.0.1", b"203.0.113.7, 10.1.2.3")


def refusal() -> Decision:
    from gatewayd.core import reply as replies

    def decide() -> object:
        kind, body = replies.body(replies.NO_REPLICA, as_json=True)
        return replies.head(
            replies.NO_REPLICA, kind, len(body), request_id=b"0", date=b"now", close=False
        )

    return decide


def compile_hundred() -> Decision:
    from gatewayd.core.model import Endpoint, Replica, Service, UnixAddress, Upstream
    from gatewayd.core.snapshot import compile_snapshot

    services, upstreams = [], {}
    for n in range(100):
        addresses = [UnixAddress(f"/run/replicas/{n}-{r}.sock") for r in range(4)]
        replicas = tuple(Replica(f"r{n}-{r}", a) for r, a in enumerate(addresses))
        service = Service("main", f"s{n}", (f"s{n}.example.com",), replicas=replicas)
        services.append(service)
        upstreams[service.key] = Upstream(
            tuple(Endpoint(f"e{n}-{r}", a, n * 4 + r) for r, a in enumerate(addresses))
        )
    return lambda: compile_snapshot(1, services, upstreams, auth=None)


def decode_hundred() -> Decision:
    import pickle

    frame = pickle.dumps(compile_hundred()())
    return lambda: pickle.loads(frame)  # noqa: S301  (our own, as on the channel)


DECISIONS: dict[str, tuple[str, Callable[[], Decision]]] = {
    "route": ("host and target to service, of 100", route),
    "path": ("path for prefix rules, allow-list", rule_path),
    "path-encoded": ("the same of an encoded path", encoded_path),
    "request-headers": ("request head of 12 fields, filtered", request_headers),
    "response-headers": ("response head of 5 fields, filtered", response_headers),
    "auth": ("bearer token, of 100", token),
    "limit-key": ("rate limit: rule and bucket key", limit_key),
    "limit-local": ("rate limit: bucket of one process", bucket_local),
    "limit-shared": ("rate limit: bucket of all workers", bucket_shared),
    "pick": ("replica with least requests, of 4, over 8 slots", pick_of_four),
    "in-flight": ("request in flight counted and uncounted", count_in_flight),
    "retry": ("retry decision", retry),
    "client": ("client's address behind a trusted proxy", real_client),
    "refusal": ("a refusal as OpenAI's error", refusal),
    "snapshot-compile": ("snapshot of 100 services of 4 replicas compiled", compile_hundred),
    "snapshot-decode": ("the same decoded by a worker", decode_hundred),
}


def microseconds(decision: Decision) -> float:
    """The least of several timings: what disturbs only ever adds."""
    timer = timeit.Timer(decision)
    number = 1
    while timer.timeit(number) < 0.02:
        number *= 2
    return min(timer.repeat(_REPEATS, number)) / number * 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", metavar="A,B", help="beginnings of names")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    wanted = tuple(args.only.split(",")) if args.only else ("",)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    results: dict[str, float | str] = {}
    for name, (_, prepare) in DECISIONS.items():
        if name.startswith(wanted):
            try:
                results[name] = round(microseconds(prepare()), 3)
            except (ImportError, AttributeError, TypeError) as error:
                results[name] = f"skipped: {error}"
    if args.json:
        print(json.dumps(results, indent=1))
    else:
        for name, result in results.items():
            shown = f"{result:10.2f} µs" if isinstance(result, float) else f"{'–':>13}"
            note = "" if isinstance(result, float) else f"  ({result})"
            print(f"{name:18}{shown}  {DECISIONS[name][0]}{note}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
