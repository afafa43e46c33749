"""The flags of an installed router package: which an operator may give, which we set, why.

Owns: asking the package's own parser, the faults of a spec, its command line and environment.
Does not own: running it (http_router), what is particular to one package (its plug-in).

What the installed version knows is asked of its own argument parser and its own list of
policies (40 ms, no process), so that `gatewayd check` and the router agree.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import importlib
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NoReturn

from gatewayd.core.model import RouterSpec
from gatewayd.routers.base import LOOPBACK, METRICS_OFFSET

DEFAULT_POLICY: Final = "cache_aware"
KEY_VARIABLE: Final = "GATEWAYD_ROUTER_KEY"

# power_of_two refuses to start with fewer than two targets (of each role). Nothing can ever listen
# on port 0, so these never register, never show in its list and are given up after seconds.
_NOBODY: Final = (f"http://{LOOPBACK}:0", f"http://{LOOPBACK}:0/1")
_NOBODY_TWICE: Final = tuple(
    word
    for role, port in (("prefill", ("none",)), ("decode", ()))
    for url in _NOBODY
    for word in (f"--{role}", url, *port)
)
# A policy for each role, in place of the common one.
_ROLE_POLICIES: Final = ("prefill-policy", "decode-policy")

OURS: Final = "is set by gatewayd"
LATER: Final = "is not available yet"
ACCESS: Final = "only gatewayd manages the router"
DISCOVERY: Final = "gatewayd tells the router its targets"
BREAKER: Final = "the router counts clients' mistakes as failures; gatewayd knows who is well"
_RETRIES: Final = (
    "the router would repeat requests a replica already works on; gatewayd repeats safely"
)
_LOOPBACK_ONLY: Final = "the router is reached over loopback only"
_HUB: Final = "the router would ask a model hub, and over HTTP it needs no tokenizer"

# Flags an operator may not give to any of them -> why. One that ends in `-` stands for all that
# begin so.
REFUSED: Final[Mapping[str, str]] = {
    **dict.fromkeys(("host", "port", "prometheus-host", "prometheus-port"), OURS),
    **dict.fromkeys(("api-key", "log-dir", "worker-startup-"), OURS),
    "policy": "is a key of its own: write `policy:` beside `type:`",
    "worker-urls": DISCOVERY,
    "max-payload-size": "use client_max_body_size",
    "request-timeout-secs": "use timeouts",
    "shutdown-grace-period-secs": "use drain_timeout",
    **dict.fromkeys(("retry-", "disable-retries"), _RETRIES),
    **dict.fromkeys(("cb-", "disable-circuit-breaker", "health-", "disable-health-check"), BREAKER),
    "pd-disaggregation": "is a key of its own: write `pd_disaggregation:` beside `type:`",
    **dict.fromkeys(("prefill", "prefill-selector", "decode", "decode-selector"), DISCOVERY),
    **dict.fromkeys(("service-discovery", "service-discovery-", "selector"), DISCOVERY),
    **dict.fromkeys(("tls-", "client-", "ca-cert-"), _LOOPBACK_ONLY),
    **dict.fromkeys(("control-plane-", "jwt-"), ACCESS),
    **dict.fromkeys(("model-path", "tokenizer-", "chat-template"), _HUB),
    "enable-igw": "each service has a router of its own",
    "dp-aware": "it would split each target into several that gatewayd does not know",
}

# What the parser lets through and the server refuses only when it starts: least, most.
RANGES: Final[Mapping[str, tuple[float, float]]] = {
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


@functools.cache
def parser_of(package: str) -> argparse.ArgumentParser:
    """The installed package's own, which exits nowhere."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    _router_args(package).add_cli_args(parser)
    return parser


def _router_args(package: str) -> Any:
    return importlib.import_module(f"{package}.router_args").RouterArgs


@dataclass(frozen=True)
class Flags:
    """`distribution` is the name that pip knows, `package` what Python imports. `defaults` are
    the flags that we set and an operator may set otherwise, unless they are `refused`."""

    distribution: str
    package: str
    grace_s: int  # gatewayd has drained before it stops a router
    defaults: Mapping[str, str | None]
    refused: Mapping[str, str]
    ranges: Mapping[str, tuple[float, float]]
    unfit_policies: Mapping[str, str]  # those that cannot work as we run it, and why
    more_policies: Callable[[], Iterable[str]] = tuple  # that its flag does not offer

    def installed(self) -> bool:
        return importlib.util.find_spec(self.package) is not None

    def version(self) -> str:
        return importlib.metadata.version(self.distribution)

    def policies(self) -> tuple[str, ...]:
        """Those of the installed router that work here, the flag's own first."""
        action = parser_of(self.package)._option_string_actions["--policy"]
        names = [*(str(name) for name in action.choices or ()), *self.more_policies()]
        return tuple(name for name in dict.fromkeys(names) if name not in self.unfit_policies)

    def check(self, spec: RouterSpec) -> list[str]:
        """Every fault of `spec`, as `key: what is wrong`."""
        if not self.installed():
            return [f"type: the router is not installed: pip install {self.distribution}"]
        try:
            faults = self._check_policy(spec.policy or DEFAULT_POLICY)
            for flag, values in _grouped(spec).items():
                found = self._check_flag(flag, values) or self._check_role(spec, flag, values)
                faults.extend(f"args.{flag}: {fault}" for fault in found)
            return faults or self._check_together(spec)
        except (ImportError, AttributeError, KeyError, ValueError) as error:
            # Its parser reads defaults from the environment; another version may be otherwise.
            what = f"the installed {self.distribution} cannot be asked for its flags"
            return [f"type: {what}: {error!r}"]

    def argv(self, spec: RouterSpec, port: int, log_dir: Path) -> list[str]:
        """Its policy and its flags, as http_launch takes them."""
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
            "request-timeout-secs": ["86400"],
            "shutdown-grace-period-secs": [str(self.grace_s)],
            "max-payload-size": [str(1 << 40)],  # the edge has the limits
            **{flag: [value] for flag, value in self.defaults.items()},
        }
        given = _grouped(spec)
        more: tuple[str, ...] = ()
        if spec.pd_disaggregation:
            flags["pd-disaggregation"] = [None]
            policies = [policy, *(v for flag in _ROLE_POLICIES for v in given.get(flag, ()))]
            more = _NOBODY_TWICE if "power_of_two" in policies else ()
        elif policy == "power_of_two":
            flags["worker-urls"] = [*_NOBODY]
        flags.update(given)
        words = (word for flag, values in flags.items() for word in _flag(flag, values))
        return [policy, *words, *more]

    def _check_policy(self, policy: str) -> list[str]:
        if policy in self.unfit_policies:
            return [f"policy: {policy} does not work here: {self.unfit_policies[policy]}"]
        policies = self.policies()
        if policy in policies:
            return []
        return [
            f"policy: {self.distribution} {self.version()} has no policy {policy!r}"
            f"{_did_you_mean(policy, policies)} (it has: {', '.join(policies)})"
        ]

    def _check_flag(self, flag: str, values: list[str | None]) -> list[str]:
        options = parser_of(self.package)._option_string_actions
        action = options.get(f"--{flag}")
        if action is None:
            known = [name.removeprefix("--") for name in options]
            hint = _did_you_mean(flag.replace("_", "-"), known)
            return [f"{self.distribution} {self.version()} has no flag --{flag}{hint}"]
        names = [name.removeprefix("--") for name in action.option_strings]
        for refused, why in self.refused.items():
            begins = refused.endswith("-")
            if any(n == refused or (begins and n.startswith(refused)) for n in names):
                return [why if why.startswith(("is ", "use ")) else f"may not be set: {why}"]
        try:
            parsed = vars(parser_of(self.package).parse_args(_flag(flag, values)))
        except _RefusedError as error:
            return [re.sub(r"^argument --[\w/-]+: ", "", str(error))]
        for name in names:
            if name in self.ranges:
                least, most = self.ranges[name]
                value = parsed[action.dest]
                if value is not None and not least <= value <= most:
                    return [f"{value:g} is not between {least:g} and {most:g}"]
        return []

    def _check_role(self, spec: RouterSpec, flag: str, values: list[str | None]) -> list[str]:
        if flag not in _ROLE_POLICIES:
            return []
        if not spec.pd_disaggregation:
            return ["means nothing without `pd_disaggregation: true`"]
        unfit = self.unfit_policies
        return [
            f"{v} does not work here: {unfit[v]}" for v in values if v is not None and v in unfit
        ]

    def _check_together(self, spec: RouterSpec) -> list[str]:
        """What only the whole command line shows."""
        _, *words = self.argv(spec, 1024, Path("/"))
        try:
            _router_args(self.package).from_cli_args(parser_of(self.package).parse_args(words))
        except (_RefusedError, ValueError) as error:
            return [f"args: {error}"]
        return []


def environment(
    base: Mapping[str, str], key: str, defaults: Mapping[str, str] = MappingProxyType({})
) -> dict[str, str]:
    """What the child gets of `base`, our own; `defaults` are what an operator may set otherwise."""
    return {
        **defaults,
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


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f", did you mean {near[0]!r}?" if near else ""
