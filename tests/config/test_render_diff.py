"""The effective configuration as a file again, and what differs between two."""

from __future__ import annotations

import dataclasses

import pytest
from gateway_text import Load

from gatewayd.config.diff import diff
from gatewayd.config.load import default_config
from gatewayd.config.render import render

FULL = """
name: g
project: p
domain: example.com
model_endpoint: {domain: models.example.org, auth: false}
router:
  type: r
  mode: steer
  policy: x
  steer_timeout: 250ms
  steer_body_limit: 64KiB
  routing_key_header: X-Session
  args: {a: 0.5, b: null, on-off: "off"}
debug_headers: true
backend: aws
public_ip: true
tags: {a: b}
certificate: {type: file, cert: /c.pem, key: /c.key, default: true}
listen:
  http: ["[::]:80", unix:/run/g, fd:web]
  https: "[::]:443"
  admin: unix:/run/a
  metrics: h:9100
workers: 3
state_dir: /var/lib/gatewayd
run_dir: /run/gatewayd
ports: {bridge: 11000-11100, router: 21000-21100}
trusted_proxies: [10.0.0.0/8, "::1"]
log: {level: debug, format: json, access: off}
auth: {type: http, url: "unix:/run/auth:/check?a=b", cache: 1.5s, forward: true}
limits: {header_size: 1000, header_timeout: 250ms, connections_per_ip: 7}
drain_timeout: 90s
services:
  - name: a
    model: m
    client_max_body_size: 1GiB
    strip_prefix: /x
    allowed_paths: [/v1/]
    timeouts: {connect: null, total: 1h}
    rate_limits: [{rps: 0.5, burst: 3, key: {type: header, header: X-Key}}, {prefix: /v1/, rps: 4}]
    cors: openai
    replicas:
      - unix:/run/a
      - {id: b, url: "http://h:1"}
      - id: s
        ssh: {host: u@h, port: 2222, app_port: 80, identity: /k, proxy: [{host: j@x, identity: /j}]}
      - ssh: {host: u@h, app_port: 80}
  - name: b
    domain: [b.org, c.org]
    https: true
    certificate: {type: file, cert: /b.pem, key: /b.key}
    hsts: {max_age: 24h, preload: true}
    auth: false
    router: null
    balance: random
    model: {name: n, prefix: /llm}
  - name: c
    router_replica: true
    model:
      name: o
      format: tgi
      eos_token: </s>
      chat_template: |
        {% for message in messages %}
          {{ message.content }}
        {% endfor %}
"""


@pytest.mark.parametrize(
    "text",
    [
        FULL,
        "auth: {type: http, url: 'http://h:9000/check'}\n",
        "auth: {type: dstack, server_connections_dir: /run/c}\n",
        "certificate: {type: letsencrypt-live, dir: /live}\nlisten: {https: []}\n",
        "name: 'no'\nlog: {access: /var/log/off}\n",
    ],
)
def test_what_is_rendered_loads_as_the_same(load: Load, text: str) -> None:
    config = load(text)
    assert load(render(config)) == config


def test_defaults_are_rendered_too(load: Load) -> None:
    text = render(default_config({}))
    assert dataclasses.replace(load(text), source="") == default_config({})
    for line in ("  header_timeout: 10s", "  http:\n  - 0.0.0.0:8080", "drain_timeout: 30s"):
        assert line in text


def test_the_same_file_differs_in_nothing(load: Load) -> None:
    nothing = diff(load(FULL), load(FULL))
    assert nothing.empty
    assert (nothing.changes, nothing.refused) == ((), ())


def test_the_order_of_services_and_replicas_is_no_difference(load: Load) -> None:
    one = load("domain: d\nservices: [name: a, {name: b, replicas: [unix:/a, unix:/b]}]\n")
    two = load("domain: d\nservices: [{name: b, replicas: [unix:/b, unix:/a]}, name: a]\n")
    assert diff(one, two).empty


BASE = """
domain: d
services:
  - name: llama
    rate_limits: [{prefix: /v1/, rps: 4}]
    replicas: [{id: a, socket: /a}, {id: b, socket: /b}]
"""


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        ("name: llama", "name: qwen", ["services: llama removed", "services: qwen added"]),
        (
            "    rate_limits:",
            "    client_max_body_size: 32MiB\n    rate_limits:",
            ["services.llama.client_max_body_size: 64MiB -> 32MiB"],
        ),
        (", {id: b, socket: /b}", "", ["services.llama.replicas: b removed"]),
        ("/b}]", "/b}, {id: c, socket: /c}]", ["services.llama.replicas: c added"]),
        ("socket: /b", "socket: /c", ["services.llama.replicas.b.socket: /b -> /c"]),
        (
            "socket: /b",
            "url: 'http://h:1'",
            [
                "services.llama.replicas.b.socket: /b -> (nothing)",
                "services.llama.replicas.b.url: (nothing) -> http://h:1",
            ],
        ),
        ("rps: 4", "rps: 0.5", ["services.llama.rate_limits[/v1/].rps: 4 -> 0.5"]),
        ("prefix: /v1/, ", "", ["services.llama.rate_limits: /v1/ removed", "services.llama."
         "rate_limits: / added"]),
        ("    rate", "    timeouts: {total: 1h}\n    rate", ["services.llama.timeouts.total: null "
         "-> 1h"]),
        ("    rate", "    domain: [x.y, z]\n    rate", ["services.llama.domain: [llama.d] -> "
         "[x.y, z]"]),
        ("    rate", "    router: r\n    rate", [
            "services.llama.router: null -> {type: r, mode: auto, policy: null, steer_timeout: 2s, "
            "steer_body_limit: 1MiB, routing_key_header: null, pd_disaggregation: false, args: {}}",
            "services.llama.balance: least_requests -> (nothing)",
        ]),
        ("domain: d", "domain: e", ["domain: d -> e", "services.llama.domain: [llama.d] -> "
         "[llama.e]"]),
        ("domain: d", "domain: d\nlog: {level: debug, access: off}", ["log.level: info -> debug",
         "log.access: stdout -> off"]),
        ("domain: d", "domain: d\ndrain_timeout: 1m", ["drain_timeout: 30s -> 1m"]),
        ("domain: d", "domain: d\nlimits: {headers: 50}", ["limits.headers: 100 -> 50"]),
        ("domain: d", "domain: d\nlimits: {replica_wait: 5s}", ["limits.replica_wait: 10s -> 5s"]),
        ("domain: d", "domain: d\ntrusted_proxies: 10.0.0.1", ["trusted_proxies: [] -> "
         "[10.0.0.1/32]"]),
        ("domain: d", "domain: d\nregion: eu", ["region: (nothing) -> eu"]),
    ],
)  # fmt: skip
def test_changes_in_the_words_of_the_file(
    load: Load, old: str, new: str, changes: list[str]
) -> None:
    assert old in BASE
    change = diff(load(BASE), load(BASE.replace(old, new, 1)))
    assert list(change.changes) == changes
    assert not change.refused
    assert not change.empty


def test_auth_comes_and_its_tokens_change(load: Load) -> None:
    def with_tokens(*names: str) -> str:
        tokens = ", ".join(f"{{name: {name}, token: {name}-token}}" for name in names)
        return f"{BASE}auth: {{type: tokens, tokens: [{tokens}]}}\n"

    assert diff(load(BASE), load(with_tokens("x"))).changes == (
        "auth: null -> {type: tokens, tokens: [{name: x, sha256: ***}], forward: false}",
        "services.llama.auth: false -> true",
    )
    assert diff(load(with_tokens("x", "y")), load(with_tokens("y", "z"))).changes == (
        "auth.tokens: x removed",
        "auth.tokens: z added",
    )


def test_what_was_bound_or_created_at_start_is_refused(load: Load) -> None:
    change = diff(
        load("state_dir: /a\nrun_dir: /r\nworkers: 2\n"),
        load(
            """
            listen: {http: 0.0.0.0:80, admin: unix:/run/a}
            ports: {bridge: 11000-11100}
            state_dir: /b
            workers: 3
            log: {level: debug}
            """
        ),
    )
    assert change.changes == ("log.level: info -> debug",)
    assert change.refused == tuple(
        f"{line}; restart gatewayd to change it"
        for line in (
            "listen.http: [0.0.0.0:8080] -> [0.0.0.0:80]",
            "listen.admin: 127.0.0.1:8000 -> unix:/run/a",
            "workers: 2 -> 3",
            "state_dir: /a -> /b",
            "run_dir: /r -> null",
            "ports.bridge: 10001-11999 -> 11000-11100",
        )
    )
    only_refused = diff(load("workers: 2\n"), load("workers: 3\n"))
    assert not only_refused.empty
    assert not only_refused.changes
