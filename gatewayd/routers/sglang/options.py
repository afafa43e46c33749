"""The installed sglang-router's policies, flags and environment.

Owns: which of them an operator may use, which we set, why. Does not own: running it (router).

What the installed version knows is asked of its own argument parser and its own list of
policies (40 ms, no process), so that `gatewayd check` and the router agree.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import importlib
import importlib.util
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NoReturn

from gatewayd.core.model import RouterSpec
from gatewayd.routers.base import LOOPBACK, METRICS_OFFSET

DEFAULT_POLICY: Final = "cache_aware"
KEY_VARIABLE: Final = "GATEWAYD_ROUTER_KEY"
GRACE_S: Final = 5  # gatewayd has drained before it stops a router

# Policies of the installed server that cannot work as we run it.
_UNFIT_POLICIES: Final = {
    "prefix_hash": "it needs tokens, and over HTTP the router has none: every request would be 503",
}

# power_of_two refuses to start with fewer than two targets. Nothing can ever listen on port 0, so
# these never register, never show in its list and are given up after 3.6 s.
_NOBODY: Final = (f"http://{LOOPBACK}:0", f"http://{LOOPBACK}:0/1")

_OURS: Final = "is set by gatewayd"
_RETRIES: Final = (
    "the router would repeat requests a replica already works on; gatewayd repeats safely"
)
_BREAKER: Final = "the router counts clients' mistakes as failures; gatewayd knows who is well"
_LATER: Final = "is not available yet"
_LOOPBACK_ONLY: Final = "the router is reached over loopback only"
_ACCESS: Final = "only gatewayd manages the router"
_DISCOVERY: Final = "gatewayd tells the router its targets"
_HUB: Final = "the router would ask a model hub, and over HTTP it needs no tokenizer"

# Flags an operator may not give -> why. A name that ends in `-` stands for all that begin so.
_REFUSED: Final[Mapping[str, str]] = {
    **dict.fromkeys(("host", "port", "prometheus-host", "prometheus-port"), _OURS),
    **dict.fromkeys(("api-key", "log-dir", "worker-startup-"), _OURS),
    "policy": "is a key of its own: write `policy:` beside `type:`",
    "worker-urls": _DISCOVERY,
    "max-payload-size": "use client_max_body_size",
    "request-timeout-secs": "use timeouts",
    "shutdown-grace-period-secs": "use drain_timeout",
    **dict.fromkeys(("retry-", "disable-retries"), _RETRIES),
    **dict.fromkeys(
        ("cb-", "disable-circuit-breaker", "health-", "disable-health-check"), _BREAKER
    ),
    **dict.fromkeys(("pd-disaggregation", "prefill", "prefill-", "decode", "decode-"), _LATER),
    **dict.fromkeys(("service-discovery", "service-discovery-", "selector"), _DISCOVERY),
    **dict.fromkeys(("tls-", "client-", "ca-cert-"), _LOOPBACK_ONLY),
    **dict.fromkeys(("control-plane-", "jwt-"), _ACCESS),
    **dict.fromkeys(("model-path", "tokenizer-", "chat-template"), _HUB),
    "enable-igw": "each service has a router of its own",
    "mini-lb": "it is a debugging aid without the router's policies",
    "dp-aware": "it would split each target into several that gatewayd does not know",
    "backend": "only SGLang's own protocol is spoken to replicas",
}

# What the parser lets through and the server refuses only when it starts: least, most.
_RANGES: Final[Mapping[str, tuple[float, float]]] = {
    "cache-threshold": (0, 1),
    "balance-abs-threshold": (0, 2**31),
    "balance-rel-threshold": (1, 2**31),
    "bucket-adjust-interval-secs": (1, 2**31),
    "eviction-interval-secs": (1, 2**31),
    "max-tree-size": (1, 2**62),
    "max-idle-secs": (1, 2**31),
    "max-concurrent-requests": (-1, 2**31),
    "queue-size": (0, 2**31),
    "queue-timeout-secs": (1, 2**31),
    "rate-limit-tokens-per-second": (1, 2**31),
}

# All the child gets of our environment. Left out above all: *_PROXY, which would capture traffic
# to targets (loopback too), and the operator's secrets, which are no business of the router's.
_PASSED_ON: Final = re.compile(
    r"PATH|HOME|TMPDIR|TZ|LANG|LC_\w+|LD_LIBRARY_PATH|VIRTUAL_ENV|MALLOC_\w+"
    r"|TOKIO_WORKER_THREADS|PYTHON(PATH|HOME|USERBASE|NOUSERSITE|DONTWRITEBYTECODE|PYCACHEPREFIX)"
)


class _RefusedError(Exception):
    """What the router's parser has against its arguments."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _RefusedError(message)


def installed() -> bool:
    return importlib.util.find_spec("sglang_router") is not None


@functools.cache
def version() -> str:
    return str(importlib.import_module("sglang_router.version").__version__)


@functools.cache
def _parser() -> _Parser:
    parser = _Parser(add_help=False, allow_abbrev=False)
    importlib.import_module("sglang_router.router_args").RouterArgs.add_cli_args(parser)
    return parser


@functools.cache
def policies() -> tuple[str, ...]:
    """Those of the installed router that work here, the flag's own first."""
    action = _parser()._option_string_actions["--policy"]
    names = [str(name) for name in action.choices or ()]
    native = importlib.import_module("sglang_router.sglang_router_rs")
    for member in dir(native.PolicyType):
        if not member.startswith("_"):
            names.append(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", member).lower())
    return tuple(name for name in dict.fromkeys(names) if name not in _UNFIT_POLICIES)


def check(spec: RouterSpec) -> list[str]:
    """Every fault of `spec`, as `key: what is wrong`."""
    if not installed():
        return ["type: the router is not installed: pip install sglang-router"]
    faults = []
    policy = spec.policy or DEFAULT_POLICY
    try:
        if policy in _UNFIT_POLICIES:
            faults.append(f"policy: {policy} does not work here: {_UNFIT_POLICIES[policy]}")
        elif policy not in policies():
            known = ", ".join(policies())
            faults.append(
                f"policy: sglang-router {version()} has no policy {policy!r}"
                f"{_did_you_mean(policy, policies())} (it has: {known})"
            )
        for flag, values in _grouped(spec).items():
            faults.extend(f"args.{flag}: {fault}" for fault in _check_flag(flag, values))
    except (ImportError, AttributeError, KeyError, ValueError) as error:
        # Its parser reads defaults from the environment; another version may be built otherwise.
        faults.append(f"type: the installed sglang-router cannot be asked for its flags: {error!r}")
    return faults


def _check_flag(flag: str, values: list[str | None]) -> list[str]:
    options = _parser()._option_string_actions
    if f"--{flag}" not in options:
        known = [name.removeprefix("--") for name in options]
        hint = _did_you_mean(flag.replace("_", "-"), known)
        return [f"sglang-router {version()} has no flag --{flag}{hint}"]
    for refused, why in _REFUSED.items():
        if flag == refused or (refused.endswith("-") and flag.startswith(refused)):
            return [why if why.startswith(("is ", "use ")) else f"may not be set: {why}"]
    try:
        parsed = vars(_parser().parse_args(_flag(flag, values)))
    except _RefusedError as error:
        return [re.sub(r"^argument --[\w-]+: ", "", str(error))]
    least, most = _RANGES.get(flag, (None, None))
    value = parsed[options[f"--{flag}"].dest]
    if least is not None and most is not None and not least <= value <= most:
        return [f"{value:g} is not between {least:g} and {most:g}"]
    return []


def argv(spec: RouterSpec, port: int, log_dir: Path) -> list[str]:
    """What follows `launch.py` on the command line."""
    policy = spec.policy or DEFAULT_POLICY
    flags: dict[str, list[str | None]] = {
        "host": [LOOPBACK],
        "port": [str(port)],
        "prometheus-host": [LOOPBACK],
        "prometheus-port": [str(port + METRICS_OFFSET)],
        "log-dir": [str(log_dir)],
        "log-level": ["warn"],
        "disable-retries": [None],
        "disable-circuit-breaker": [None],
        "disable-health-check": [None],
        "worker-startup-timeout-secs": ["5"],
        "request-timeout-secs": ["86400"],
        "shutdown-grace-period-secs": [str(GRACE_S)],
        "max-payload-size": [str(1 << 40)],  # the edge has the limits
    }
    if policy == "power_of_two":
        flags["worker-urls"] = [*_NOBODY]
    flags.update(_grouped(spec))
    return [policy, *(word for flag, values in flags.items() for word in _flag(flag, values))]


def environment(base: Mapping[str, str], key: str) -> dict[str, str]:
    return {
        **{name: value for name, value in base.items() if _PASSED_ON.fullmatch(name)},
        "PATH": base.get("PATH", os.defpath),
        "HF_HUB_OFFLINE": "1",
        "HF_ENDPOINT": f"http://{LOOPBACK}:9",  # should it still ask a model hub: nobody there
        KEY_VARIABLE: key,
    }


def _grouped(spec: RouterSpec) -> dict[str, list[str | None]]:
    """A flag that is given several times takes several values."""
    grouped: dict[str, list[str | None]] = {}
    for flag, value in spec.args:
        grouped.setdefault(flag, []).append(value)
    return grouped


def _flag(flag: str, values: list[str | None]) -> list[str]:
    given = [value for value in values if value is not None]
    if len(given) == 1:
        return [f"--{flag}={given[0]}"]  # so that a value may begin with a dash
    return [f"--{flag}", *given]


def _did_you_mean(word: str, known: tuple[str, ...] | list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f", did you mean {near[0]!r}?" if near else ""
