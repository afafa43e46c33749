"""How mistakes in a file are told."""

from __future__ import annotations

from pathlib import Path

import pytest
from gateway_text import Problems

from gatewayd.config.errors import ConfigError, Problem
from gatewayd.config.load import load_config

# --- explaining --------------------------------------------------------------------------------


def test_problems_are_told_all_at_once_and_in_order(problems: Problems) -> None:
    text = """
        type: gateway
        listen: {http: 8080}
        workers: many
        listne: 1
        services:
          - name: a
            domain: a.b
            rate_limits:
              - {prefix: /, rsp: 4}
          - name: a
            domain: A.B
            model: ${MODEL}
          - domain: c
            limits: 1
    """
    assert problems(text) == [
        "2: listen.http: expected host:port or unix:/path, or fd:NAME, found the number `8080`; "
        "did you mean `0.0.0.0:8080`?",
        "3: workers: expected auto or a whole number between 1 and 256, found `many`",
        "4: listne: unknown key; did you mean `listen`?",
        "9: services[0].rate_limits[0].rps: this key is required",
        "9: services[0].rate_limits[0].rsp: unknown key; did you mean `rps`?",
        "10: services[1].name: `a` is also the name of services[0]",
        "11: services[1].domain: the domain `a.b` is also that of services[0]",
        "12: services[1].model: environment variable MODEL is not set",
        "13: services[2].name: this key is required",
        "14: services[2].limits: unknown key; `limits` belongs at the top",
    ]


def test_a_problem_has_its_parts() -> None:
    Path("g.yaml").write_text("name: a\nversion: 1\nlog: {levle: info}\n")
    with pytest.raises(ConfigError) as info:
        load_config("g.yaml", {})
    assert info.value.problems == (
        Problem("g.yaml", 2, "version", "unknown key", None),
        Problem("g.yaml", 3, "log.levle", "unknown key", "did you mean `level`?"),
    )
