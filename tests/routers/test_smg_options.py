"""What an operator may say about an smg, and what it is started with."""

from __future__ import annotations

from pathlib import Path

import pytest

from gatewayd.core.model import RouterSpec
from gatewayd.routers import http_flags
from gatewayd.routers.smg import PLUGIN
from gatewayd.routers.smg.options import FLAGS

pytestmark = pytest.mark.needs("smg")


def faults(policy: str | None = None, *args: tuple[str, str | None]) -> list[str]:
    return PLUGIN.check(RouterSpec("smg", policy=policy, args=args))


def test_the_policies_are_those_of_the_installed_router() -> None:
    known = FLAGS.policies()
    assert set(known) == {
        *{"random", "round_robin", "cache_aware", "power_of_two", "least_load"},
        *{"manual", "consistent_hashing"},
    }
    for policy in (None, *known):
        assert faults(policy) == []


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("least_laod", "policy: smg 1.13.0 has no policy 'least_laod', did you mean 'least_load'?"),
        ("bucket", "policy: smg 1.13.0 has no policy 'bucket'"),
        ("prefix_hash", "policy: prefix_hash does not work here: as long as it repeats nothing"),
        ("passthrough", "policy: passthrough does not work here: every request"),
    ],
)
def test_a_policy_that_it_has_not_or_that_cannot_work_is_refused(
    policy: str, expected: str
) -> None:
    (fault,) = faults(policy)
    assert fault.startswith(expected)


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        ("cache-threshold", "0.5", None),
        ("cache-match-threshold", "0.5", None),
        ("power-of-two-load-metric", "requests", None),
        ("sticky-sessions", None, None),
        ("model-alias", "gpt=meta/llama", None),
        ("rate-limit-tokens-per-second", "0", None),
        ("cache_threshold", "0.5", "did you mean 'cache-threshold'?"),
        ("nonsense", "1", "smg 1.13.0 has no flag --nonsense"),
        ("cache-threshold", "high", "invalid float value: 'high'"),
        ("cache-match-threshold", "7", "7 is not between 0 and 1"),
        ("worker-overload-token-usage", "0", "0 is not between 0.001 and 1"),
        ("worker-wedge-secs", "-1", "-1 is not between 0 and"),
        ("power-of-two-load-metric", "guess", "invalid choice: 'guess'"),
        ("port", "30000", "is set by gatewayd"),
        ("idle-connection-timeout-secs", "5", "is set by gatewayd"),
        ("worker-startup-check-interval", "5", "is set by gatewayd"),
        ("health-check-port", "5", "gatewayd knows who is well"),
        ("worker-auto-recovery", None, "gatewayd knows who is well"),
        ("model", "meta/llama", "model hub"),
        ("cors-allowed-origins", "*", "use cors"),
        ("routing-key-headers", "x-user", "use routing_key_header"),
        ("stream-body-stall-timeout-secs", "5", "use timeouts"),
        ("worker-overload-shed", None, "gatewayd would send what it sheds"),
        ("epd-disaggregation", None, "is not available yet"),
        ("encode", "http://10.0.0.1", "is not available yet"),
        ("discovery-file", "/x", "gatewayd tells the router its targets"),
        ("enable-mesh", None, "it knows of no other"),
        ("mesh-port", "1", "it knows of no other"),
        ("backend", "openai", "over HTTP/1.1 through gatewayd's bridge"),
        ("tenant-api-key", "a:b", "before the router"),
        ("enable-rl", None, "only gatewayd manages the router"),
        ("help", None, "has no flag --help"),
    ],
)
def test_flags_are_checked_against_the_installed_router(
    flag: str, value: str | None, expected: str | None
) -> None:
    found = faults(None, (flag, value))
    if expected is None:
        assert found == []
    else:
        assert [fault.split(": ")[0] for fault in found] == [f"args.{flag}"]
        assert expected in found[0]


def test_what_only_the_whole_command_line_shows_is_a_fault_too() -> None:
    (fault,) = faults(None, ("model-alias", "no-equals-sign"))
    assert fault.startswith("args: Invalid model alias 'no-equals-sign'")


def test_the_command_line_has_what_keeps_it_tame(tmp_path: Path) -> None:
    spec = RouterSpec("smg", policy="least_load", args=(("max-concurrent-requests", "9"),))
    line = FLAGS.argv(spec, 20001, tmp_path)
    assert line[0] == "least_load"
    assert {
        *{"--host=127.0.0.1", "--port=20001"},
        *{"--prometheus-host=127.0.0.1", "--prometheus-port=30001"},
        *{"--disable-retries", "--disable-circuit-breaker", "--disable-health-check"},
        *{"--disable-tokenizer-autoload", "--sse-keepalive-secs=0"},
        *{"--worker-startup-check-interval=1", "--max-concurrent-requests=9"},
    } <= set(line)
    assert "--max-concurrent-requests=0" not in line


def test_traits_hide_the_key_until_there_is_one() -> None:
    traits = PLUGIN.traits(RouterSpec("smg"))
    assert traits.request_headers == ()
    for header in (traits.token_header, traits.routing_key_header, b"x-smg-target-worker"):
        assert header.startswith(traits.strip_request_prefixes)
    assert b"call_upstream_connection_failed" not in traits.unsent_errors
    assert "/v1/responses" not in traits.steer_paths


def test_clients_reach_nothing_that_manages_it() -> None:
    allowed = PLUGIN.traits(RouterSpec("smg")).allowed_paths
    for path in ("/workers", "/v1/tokenizers", "/v1/tokenizers/x", "/v1/rl/workers", "/wasm"):
        assert not any(path == a or (a.endswith("/") and path.startswith(a)) for a in allowed)


def test_without_it_one_is_told_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_flags.importlib.util, "find_spec", lambda name: None)
    assert faults() == ["type: the router is not installed: pip install smg"]
