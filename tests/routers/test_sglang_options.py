"""What an operator may say about the router, and what it is started with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gatewayd.core.model import RouterSpec
from gatewayd.routers import http_flags
from gatewayd.routers import http_logs as logs
from gatewayd.routers.sglang import PLUGIN
from gatewayd.routers.sglang.options import FLAGS


def spec(policy: str | None = None, **args: str | None) -> RouterSpec:
    flags = tuple((flag.replace("_", "-"), value) for flag, value in args.items())
    return RouterSpec("sglang", policy=policy, args=flags)


def faults(policy: str | None = None, **args: str | None) -> list[str]:
    return PLUGIN.check(spec(policy, **args))


def test_the_policies_are_those_of_the_installed_router() -> None:
    known = FLAGS.policies()
    assert set(known) >= {
        *{"random", "round_robin", "cache_aware", "power_of_two", "manual"},
        *{"consistent_hashing", "bucket"},  # which its command line does not offer
    }
    assert "prefix_hash" not in known
    for policy in (None, *known):
        assert faults(policy) == []


def test_an_unknown_policy_is_refused_with_what_was_meant() -> None:
    (fault,) = faults("cache_awre")
    assert fault.startswith("policy: sglang-router 0.3.2 has no policy 'cache_awre'")
    assert "did you mean 'cache_aware'?" in fault
    assert "round_robin" in fault
    (fault,) = faults("prefix_hash")
    assert fault.startswith("policy: prefix_hash does not work here: it needs tokens")


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        ("cache-threshold", "0.5", None),
        ("balance-abs-threshold", "32", None),
        ("log-level", "debug", None),
        ("max-concurrent-requests", "-1", None),
        ("assignment-mode", "min_load", None),
        ("cache-treshold", "0.5", "has no flag --cache-treshold, did you mean 'cache-threshold'?"),
        ("cache_threshold", "0.5", "did you mean 'cache-threshold'?"),
        ("nonsense", "1", "sglang-router 0.3.2 has no flag --nonsense"),
        ("cache-threshold", "high", "invalid float value: 'high'"),
        ("cache-threshold", "1.5", "1.5 is not between 0 and 1"),
        ("cache-threshold", "nan", "nan is not between 0 and 1"),
        ("cache-threshold", None, "expected one argument"),
        ("max-tree-size", "0", "0 is not between 1 and"),
        ("log-level", "loud", "invalid choice: 'loud'"),
        ("assignment-mode", "max", "invalid choice: 'max'"),
        ("enable-trace", "yes", "ignored explicit argument 'yes'"),
        ("host", "0.0.0.0", "is set by gatewayd"),
        ("port", "30000", "is set by gatewayd"),
        ("prometheus-port", "29000", "is set by gatewayd"),
        ("api-key", "secret", "is set by gatewayd"),
        ("log-dir", "/var/log", "is set by gatewayd"),
        ("worker-urls", "http://10.0.0.1", "gatewayd tells the router its targets"),
        ("policy", "random", "write `policy:` beside `type:`"),
        ("retry-max-retries", "3", "gatewayd repeats safely"),
        ("cb-failure-threshold", "3", "gatewayd knows who is well"),
        ("health-check-interval-secs", "3", "gatewayd knows who is well"),
        ("request-timeout-secs", "3", "use timeouts"),
        ("max-payload-size", "3", "use client_max_body_size"),
        ("pd-disaggregation", None, "write `pd_disaggregation:` beside `type:`"),
        ("prefill", "http://10.0.0.1", "gatewayd tells the router its targets"),
        ("decode-selector", "a=b", "gatewayd tells the router its targets"),
        ("prefill-policy", "bucket", "means nothing without `pd_disaggregation: true`"),
        ("enable-igw", None, "each service has a router of its own"),
        ("service-discovery", None, "gatewayd tells the router its targets"),
        ("control-plane-api-keys", "a:b:admin:c", "only gatewayd manages the router"),
        ("tls-cert-path", "/x", "loopback only"),
        ("model-path", "meta/llama", "model hub"),
        ("help", None, "has no flag --help"),
    ],
)
def test_flags_are_checked_against_the_installed_router(
    flag: str, value: str | None, expected: str | None
) -> None:
    found = PLUGIN.check(RouterSpec("sglang", args=((flag, value),)))
    if expected is None:
        assert found == []
    else:
        assert [fault.split(": ")[0] for fault in found] == [f"args.{flag}"]
        assert expected in found[0]


def test_every_fault_is_told_at_once() -> None:
    assert len(faults("fastest", port="1", cache_threshold="2", wrong="x")) == 4


def test_a_router_that_is_not_installed_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_flags.importlib.util, "find_spec", lambda name: None)
    assert faults() == ["type: the router is not installed: pip install sglang-router"]


def test_the_command_line_has_what_keeps_it_tame(tmp_path: Path) -> None:
    line = FLAGS.argv(spec("round_robin", log_level="debug"), 20001, tmp_path)
    assert line[0] == "round_robin"
    assert {
        *{"--host=127.0.0.1", "--port=20001"},
        *{"--prometheus-host=127.0.0.1", "--prometheus-port=30001"},
        *{"--disable-retries", "--disable-circuit-breaker", "--disable-health-check"},
        *{"--worker-startup-timeout-secs=5", "--request-timeout-secs=86400"},
        *{f"--log-dir={tmp_path}", "--log-level=debug"},
    } <= set(line)
    assert "--log-level=warn" not in line
    assert "--worker-urls" not in line


def test_a_flag_given_twice_has_two_values(tmp_path: Path) -> None:
    flag = "prometheus-duration-buckets"
    several = RouterSpec("sglang", args=((flag, "0.1"), (flag, "1")))
    assert PLUGIN.check(several) == []
    line = FLAGS.argv(several, 20001, tmp_path)
    assert line[line.index(f"--{flag}") :][:3] == [f"--{flag}", "0.1", "1"]


def test_the_environment_has_no_proxy_and_no_secret() -> None:
    base = {
        "PATH": "/bin",
        "LANG": "C.UTF-8",
        "LC_ALL": "C",
        "HTTP_PROXY": "http://proxy",
        "http_proxy": "http://proxy",
        "ALL_PROXY": "http://proxy",
        "NO_PROXY": "*",
        "ALICE_TOKEN": "secret",
        "HF_TOKEN": "secret",
        "HF_ENDPOINT": "https://hub",
        "POSTGRES_POOL_MAX": "many",
        "PYTHONWARNINGS": "error",
    }
    assert http_flags.environment(base, "the key") == {
        "PATH": "/bin",
        "LANG": "C.UTF-8",
        "LC_ALL": "C",
        "HF_HUB_OFFLINE": "1",
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "GATEWAYD_ROUTER_KEY": "the key",
    }


def test_what_an_operator_says_of_the_environment_holds() -> None:
    defaults = {"MALLOC_ARENA_MAX": "1"}
    assert http_flags.environment({}, "key", defaults)["MALLOC_ARENA_MAX"] == "1"
    said = http_flags.environment({"MALLOC_ARENA_MAX": "8"}, "key", defaults)
    assert said["MALLOC_ARENA_MAX"] == "8"


def test_a_hostile_environment_is_a_fault_and_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGRES_POOL_MAX", "many")
    http_flags.parser_of.cache_clear()
    try:
        (fault,) = faults()
        assert fault.startswith("type: the installed sglang-router cannot be asked")
    finally:
        http_flags.parser_of.cache_clear()


def test_traits_hide_the_key_until_there_is_one() -> None:
    traits = PLUGIN.traits(spec())
    assert traits.request_headers == ()
    assert traits.allowed_paths == ("/generate", "/chat/completions", "/v1/")
    assert traits.token_header.startswith(traits.strip_request_prefixes)
    assert b"authorization" in traits.strip_request
    assert b"call_upstream_request_error" not in traits.unsent_errors


def test_no_header_of_a_client_chooses_the_target() -> None:
    traits = PLUGIN.traits(spec("manual"))
    for header in (b"x-smg-target-worker", traits.routing_key_header):
        assert header.startswith(traits.strip_request_prefixes)


@pytest.mark.parametrize(
    ("policy", "always"),
    [("consistent_hashing", True), ("manual", False), ("cache_aware", False), (None, False)],
)
def test_who_needs_a_key_for_every_request(policy: str | None, always: bool) -> None:
    """manual would remember each of them for hours."""
    assert PLUGIN.traits(spec(policy)).routing_key_always is always


def test_logs_are_few_and_small(tmp_path: Path) -> None:
    for day in range(10, 20):
        path = tmp_path / f"smg.2026-01-{day}"
        path.write_text("x" * 100)
        (tmp_path / "other").write_text("not the router's")
    newest = tmp_path / "smg.2026-01-19"
    newest.write_text("y" * 2000)
    logs.tidy(tmp_path, files=3, size=1000)
    names = sorted(path.name for path in tmp_path.glob("smg.*"))
    assert names == [f"smg.2026-01-{day}" for day in (17, 18, 19)] + ["smg.2026-01-19.old"]
    assert newest.read_text() == ""
    assert (tmp_path / "smg.2026-01-19.old").read_text() == "y" * 2000
    logs.tidy(tmp_path, files=3, size=1000)
    names = sorted(path.name for path in tmp_path.glob("smg.*"))
    assert len(names) == 3
    assert sum(path.stat().st_size for path in tmp_path.glob("smg.*")) <= 3 * 1000
    assert (tmp_path / "other").exists()


def test_prefill_and_decode_have_policies_of_their_own(tmp_path: Path) -> None:
    apart = RouterSpec("sglang", pd_disaggregation=True)
    line = FLAGS.argv(apart, 20001, tmp_path)
    assert line[0] == "cache_aware"
    assert "--pd-disaggregation" in line
    assert "--prefill" not in line
    given = replace(apart, args=(("prefill-policy", "bucket"), ("decode-policy", "random")))
    assert PLUGIN.check(given) == []
    line = FLAGS.argv(given, 20001, tmp_path)
    assert {"--prefill-policy=bucket", "--decode-policy=random"} <= set(line)
    wrong = replace(apart, args=(("decode-policy", "bucket"),))
    assert "args.decode-policy: invalid choice: 'bucket'" in PLUGIN.check(wrong)[0]


@pytest.mark.parametrize(
    "spec",
    [
        RouterSpec("sglang", policy="power_of_two", pd_disaggregation=True),
        RouterSpec("sglang", args=(("decode-policy", "power_of_two"),), pd_disaggregation=True),
    ],
)
def test_two_that_are_nobody_stand_in_for_each_role(spec: RouterSpec, tmp_path: Path) -> None:
    assert PLUGIN.check(spec) == []
    line = FLAGS.argv(spec, 20001, tmp_path)
    assert "--worker-urls" not in line
    assert line.count("--prefill") == line.count("--decode") == 2
    assert line[line.index("--prefill") :][:3] == ["--prefill", "http://127.0.0.1:0", "none"]
