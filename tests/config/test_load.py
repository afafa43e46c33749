"""What a good file means, and that a bad one is explained in one go."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import socket
from pathlib import Path

import pytest
from gateway_text import Load

from gatewayd.config.load import default_config
from gatewayd.config.model import Config, ListenAddress, PortRange
from gatewayd.core.model import (
    Cors,
    DstackAuth,
    HttpAuth,
    Limits,
    Log,
    RateLimit,
    Replica,
    RouterSpec,
    Service,
    TcpAddress,
    Timeouts,
    Token,
    TokensAuth,
    UnixAddress,
)

ALL_KEYS = """
type: gateway
name: my-gateway
project: main
domain: example.com
router: sglang
certificate: null

listen:
  http: [0.0.0.0:8080]
  admin: 127.0.0.1:8000
  metrics: null
workers: auto
state_dir: ./state
run_dir: null
trusted_proxies: []
log: {level: info, format: text, access: stdout}

auth:
  type: tokens
  tokens:
    - {name: alice, token: "${ALICE_TOKEN}"}
    - {name: ci, sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08}

limits:
  header_size: 32KiB
  headers: 100
  header_timeout: 10s
  keepalive_timeout: 75s
  body_idle_timeout: 60s
  write_timeout: 60s
  connections_per_ip: 0

services:
  - name: llama
    domain: llama.example.com
    auth: false
    router: null
    model: meta-llama/Llama-3.2-3B-Instruct
    client_max_body_size: 64MiB
    strip_prefix: null
    allowed_paths: null
    timeouts: {connect: 5s, first_byte: 600s, idle: 300s, total: null}
    balance: least_requests
    rate_limits:
      - {prefix: /, rps: 4, burst: 9, key: {type: ip_address}}
      - {prefix: /v1/, rps: 100, burst: 100, key: {type: header, header: Authorization}}
    cors: null
    replicas:
      - unix:/run/replicas/a.sock
      - {id: b, socket: /run/replicas/b.sock}
      - {id: c, url: http://10.0.0.7:30000}
"""


def test_every_key(load: Load, tmp_path: Path) -> None:
    config = load(ALL_KEYS, {"ALICE_TOKEN": "s3cret"})
    assert config == Config(
        source=str(tmp_path / "gateway.yaml"),
        name="my-gateway",
        project="main",
        domain="example.com",
        router=RouterSpec("sglang"),
        listen=dataclasses.replace(
            config.listen,
            http=(ListenAddress(TcpAddress("0.0.0.0", 8080)),),
            admin=TcpAddress("127.0.0.1", 8000),
            metrics=None,
        ),
        workers=min(8, len(os.sched_getaffinity(0))),
        state_dir=str(tmp_path / "state"),
        run_dir=None,
        trusted_proxies=(),
        log=Log(),
        auth=TokensAuth(
            (
                Token("alice", hashlib.sha256(b"s3cret").digest()),
                Token("ci", hashlib.sha256(b"test").digest()),
            )
        ),
        limits=Limits(),
        drain_timeout=30,
        ports=dataclasses.replace(
            config.ports, bridge=PortRange(10001, 11999), router=PortRange(20000, 24999)
        ),
        services=(
            Service(
                project="main",
                name="llama",
                domains=("llama.example.com",),
                auth=False,
                model="meta-llama/Llama-3.2-3B-Instruct",
                rate_limits=(
                    RateLimit("/", 4, 9),
                    RateLimit("/v1/", 100, 100, "authorization"),
                ),
                replicas=(
                    Replica("bf11b502", UnixAddress("/run/replicas/a.sock")),
                    Replica("b", UnixAddress("/run/replicas/b.sock")),
                    Replica("c", TcpAddress("10.0.0.7", 30000)),
                ),
            ),
        ),
    )


def test_the_five_line_file(load: Load) -> None:
    config = load(
        """
        type: gateway
        name: sglang-gateway
        backend: aws
        region: eu-west-1
        domain: example.com
        router: sglang
        """
    )
    assert config.name == "sglang-gateway"
    assert config.cloud == (("backend", "aws"), ("region", "eu-west-1"))
    assert config.router == RouterSpec("sglang")
    assert config.services == ()


def test_the_smallest_file_with_a_service(load: Load) -> None:
    (service,) = load(
        """
        domain: localhost
        router: sglang
        services:
          - name: llama
            replicas: [unix:/run/replicas/a.sock, unix:/run/replicas/b.sock]
        """
    ).services
    assert service.domains == ("llama.localhost",)
    assert service.router == RouterSpec("sglang")
    assert [str(replica.address) for replica in service.replicas] == [
        "unix:/run/replicas/a.sock",
        "unix:/run/replicas/b.sock",
    ]
    assert not service.auth


def test_without_a_file_everything_is_default(load: Load, tmp_path: Path) -> None:
    config = default_config({})
    assert config == dataclasses.replace(load("{}"), source="")
    assert config.name == socket.gethostname()
    assert config.state_dir == str(tmp_path / "state")
    assert str(config.listen.http[0]) == "0.0.0.0:8080"
    assert config.auth is None


def test_what_is_commented_out_is_not_there(load: Load) -> None:
    config = load(
        """
        domain: example.com
        listen:
        #  http: 0.0.0.0:80
        log:
        limits:
        ports:
        trusted_proxies:
        auth:
        router:
        services:
        """
    )
    assert dataclasses.replace(config, domain=None, source="") == default_config({})


def test_addresses_of_every_kind(load: Load) -> None:
    config = load(
        """
        listen:
          http: ["[::]:8080", 0.0.0.0:8080, unix:/run/g.sock, fd:web, 127.0.0.1:0, 127.0.0.1:0]
          admin: unix:/run/admin.sock
          metrics: localhost:9100
        """
    )
    assert [str(address) for address in config.listen.http] == [
        "[::]:8080",
        "0.0.0.0:8080",
        "unix:/run/g.sock",
        "fd:web",
        "127.0.0.1:0",
        "127.0.0.1:0",
    ]
    assert config.listen.admin == UnixAddress("/run/admin.sock")
    assert config.listen.metrics == TcpAddress("localhost", 9100)


def test_one_is_a_list_of_one(load: Load) -> None:
    config = load(
        """
        listen: {http: 0.0.0.0:80}
        trusted_proxies: 10.0.0.1
        services:
          - {name: a, domain: a.b, cors: {origins: https://x.y}}
        """
    )
    assert len(config.listen.http) == 1
    assert config.trusted_proxies == ("10.0.0.1/32",)
    assert config.services[0].cors == Cors(origins=("https://x.y",))


def test_paths_are_made_absolute(load: Load, tmp_path: Path) -> None:
    config = load("state_dir: a/../b\nrun_dir: run\nlog: {access: logs/a.log}\n")
    assert (config.state_dir, config.run_dir) == (str(tmp_path / "b"), str(tmp_path / "run"))
    assert config.log.access == str(tmp_path / "logs/a.log")


def test_keys_of_other_gateways_are_only_kept(load: Load) -> None:
    config = load(
        """
        backend: gcp
        instance_type: e2-small
        public_ip: true
        tags: {env: prod, cost: 12, owner: null}
        """
    )
    assert config.cloud == (
        ("backend", "gcp"),
        ("instance_type", "e2-small"),
        ("public_ip", "true"),
        ("tags", "env=prod,cost=12,owner="),
    )


@pytest.mark.parametrize("domain", ["'*.example.com'", "Example.com.", "example.com"])
def test_the_domain_of_the_gateway(load: Load, domain: str) -> None:
    assert load(f"domain: {domain}\nservices: [name: a]\n").services[0].domains == (
        "a.example.com",
    )


@pytest.mark.parametrize(
    ("text", "auth"),
    [
        ("{type: none}", None),
        (
            "{type: http, url: 'http://127.0.0.1:9000/check'}",
            HttpAuth(TcpAddress("127.0.0.1", 9000), "/check"),
        ),
        (
            "{type: http, url: 'unix:/run/a.sock:/check', cache: 0, stale_if_error: 1h, "
            "timeout: 1s, forward: true}",
            HttpAuth(UnixAddress("/run/a.sock"), "/check", 0, 3600, 1, True),
        ),
        (
            "{type: http, url: 'unix:/run/a.sock', path: /check}",
            HttpAuth(UnixAddress("/run/a.sock"), "/check"),
        ),
        ("{type: http, url: 'http://h'}", HttpAuth(TcpAddress("h", 80), "/")),
        ("{type: dstack, server_connections_dir: /run/c}", DstackAuth("/run/c")),
        ("{type: dstack}", DstackAuth("/home/ubuntu/dstack/server-connections")),
    ],
)
def test_who_is_asked(load: Load, text: str, auth: object) -> None:
    config = load(f"auth: {text}\nservices: [{{name: a, domain: a.b}}]\n")
    assert config.auth == auth
    assert config.services[0].auth == (auth is not None)  # guarded by default, if anything is


@pytest.mark.parametrize(
    ("text", "auth"),
    [
        ("", DstackAuth()),
        ("auth:", DstackAuth()),
        ("auth: {type: none}", None),
        ("auth: {type: http, url: 'http://h'}", HttpAuth(TcpAddress("h", 80), "/")),
    ],
)
def test_who_is_asked_for_services_that_are_registered(load: Load, text: str, auth: object) -> None:
    assert load(f"domain: a.b\n{text}\n").registered_auth == auth


def test_only_the_digest_of_a_token_is_kept(load: Load) -> None:
    config = load(
        """
        auth:
          type: tokens
          forward: true
          tokens: [{name: a, token: "s3cret"}]
        """
    )
    assert isinstance(config.auth, TokensAuth)
    assert config.auth.forward
    assert "s3cret" not in repr(config)


def test_routers(load: Load) -> None:
    config = load(
        """
        domain: d
        router:
          type: r
          mode: through
          policy: p
          args: {a: 0.5, b: 7, c: true, d: null, e: x, f: false}
        services:
          - name: inherits
          - {name: none, router: null, balance: random}
          - {name: own, router: other}
        """
    )
    spec = RouterSpec(
        "r", "through", "p", (("a", "0.5"), ("b", "7"), ("c", None), ("d", None), ("e", "x"))
    )
    assert [service.router for service in config.services] == [spec, None, RouterSpec("other")]


def test_the_rest_of_a_service(load: Load) -> None:
    (service,) = load(
        """
        services:
          - name: a
            domain: [A.example.com, b.example.com]
            client_max_body_size: 1KiB
            strip_prefix: /api/
            allowed_paths: [/v1/, /health]
            timeouts: {connect: 250ms, first_byte: null, idle: 1m, total: 1h}
            balance: round_robin
            rate_limits: [{rps: 0.5}]
            cors:
              origins: [https://a.b]
              methods: [GET]
              headers: [X-A]
              max_age: 1h
              credentials: true
            replicas: [http://h:1/]
        """
    ).services
    assert service == Service(
        project="main",
        name="a",
        domains=("a.example.com", "b.example.com"),
        client_max_body_size=1024,
        strip_prefix="/api",
        allowed_paths=("/v1/", "/health"),
        timeouts=Timeouts(0.25, None, 60, 3600),
        balance="round_robin",
        rate_limits=(RateLimit("/", 0.5, 0),),
        cors=Cors(("https://a.b",), ("GET",), ("X-A",), 3600, True),
        replicas=(Replica(service.replicas[0].id, TcpAddress("h", 1)),),
    )


def test_the_project_is_that_of_every_service(load: Load) -> None:
    (service,) = load("project: research\nservices: [{name: a, domain: a.b}]\n").services
    assert service.key == "research/a"
