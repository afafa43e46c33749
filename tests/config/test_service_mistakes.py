"""The mistakes that operators make in services, their limits and replicas."""

from __future__ import annotations

import pytest
from gateway_text import Problems

SERVICE = "domain: d\nservices:\n  - name: a\n    "  # a key of a service follows on line 4
LONG = "/run/" + "x" * 110 + ".sock"
SERVICES = [
    ("nam: b", "nam: unknown key; did you mean `name`?"),
    ("servers: b", "servers: unknown key"),
    ("debug: true", "debug: unknown key"),
    ("max_body_size: 1", "max_body_size: unknown key; did you mean `client_max_body_size`?"),
    (
        "domain: a.example.com:80",
        "domain: expected a domain without a port, "
        "found `a.example.com:80`; did you mean `a.example.com`?",
    ),
    (
        "domain: ['*.d']",
        "domain[0]: a service answers at whole domains, not at all below one, found `*.d`",
    ),
    ('auth: "true"', "auth: expected true or false, found `true`; write it without quotes"),
    ("auth: true", "auth: nobody is configured to ask; add an `auth` table at the top"),
    (
        "model: 7",
        'model: expected the name of a model or a table, found the number `7`; write "7"',
    ),
    (
        "model: {name: m, format: tgy}",
        "model.format: expected openai or tgi, found `tgy`; did you mean `tgi`?",
    ),
    ("model: {name: m, format: tgi}", "model: `format: tgi` needs the key `chat_template`"),
    (
        "model: {name: m, eos_token: x}",
        "model.eos_token: `eos_token` means nothing without `format: tgi`",
    ),
    (
        "model: {name: m, format: tgi, chat_template: x, eos_token: y, prefix: /v1}",
        "model.prefix: `prefix` means nothing with `format: tgi`",
    ),
    (
        "client_max_body_size: 64m",
        "client_max_body_size: expected a size such as 64KiB or 16MiB, found `64m`; "
        "did you mean `64MiB`?",
    ),
    (
        "client_max_body_size: 0",
        "client_max_body_size: expected a size such as 64KiB or 16MiB, above 0, "
        "found the number `0`",
    ),
    (
        "strip_prefix: v1",
        "strip_prefix: expected a path that begins with /, found `v1`; did you mean `/v1`?",
    ),
    ("allowed_paths: /v1", "allowed_paths: expected a list, found `/v1`; write [/v1]"),
    (
        "allowed_paths: [v1/]",
        "allowed_paths[0]: expected a path that begins with /, found `v1/`; did you mean `/v1/`?",
    ),
    ("timeouts: 5s", "timeouts: expected a table (`key: value` lines), found `5s`"),
    ("timeouts: {conect: 5s}", "timeouts.conect: unknown key; did you mean `connect`?"),
    (
        "timeouts: {first_byte: -1}",
        "timeouts.first_byte: expected a duration such as 250ms, "
        "5s, 10m or 1h, found the number `-1`",
    ),
    (
        "balance: least_request",
        "balance: expected least_requests, round_robin or random, "
        "found `least_request`; did you mean `least_requests`?",
    ),
    ("cors: true", "cors: expected openai or a table, found the boolean `true`"),
    (
        "cors: {origins: [https://a.b/]}",
        "cors.origins[0]: expected * or an origin such as "
        "https://app.example.com, found `https://a.b/`; did you mean `https://a.b`?",
    ),
    ("cors: {origins: []}", "cors.origins: expected at least one origin"),
    (
        "cors: {credentials: true}",
        "cors.credentials: credentials are not for every origin: name the origins",
    ),
    (
        "cors: {methods: get}",
        "cors.methods: expected a method such as GET, found `get`; did you mean `GET`?",
    ),
    (
        "router: {type: r, pd_disaggregation: 1}",
        "router.pd_disaggregation: expected true or false, found the number `1`",
    ),
]


RATE_LIMITS = [
    ("rate_limits: {rps: 1}", "rate_limits: expected a list, found a table"),
    ("rate_limits: [{rsp: 1, rps: 1}]", "rate_limits[0].rsp: unknown key; did you mean `rps`?"),
    ("rate_limits: [{prefix: /}]", "rate_limits[0].rps: this key is required"),
    (
        "rate_limits: [{rps: 0}]",
        "rate_limits[0].rps: expected a number above 0, found the number `0`",
    ),
    (
        "rate_limits: [{rps: .inf}]",
        "rate_limits[0].rps: expected a number above 0, found the number `.inf`",
    ),
    ("rate_limits: [{rps: 4/s}]", "rate_limits[0].rps: expected a number above 0, found `4/s`"),
    (
        "rate_limits: [{rps: 1e3}]",
        "rate_limits[0].rps: expected a number above 0, found `1e3`; write 1000 without quotes",
    ),
    (
        "rate_limits: [{rps: 1, burst: '5'}]",
        "rate_limits[0].burst: expected a whole number of at least 0, found `5`; "
        "write 5 without quotes",
    ),
    (
        "rate_limits: [{rps: 1, burst: -1}]",
        "rate_limits[0].burst: expected a whole number of at least 0, found the number `-1`",
    ),
    (
        "rate_limits: [{rps: 1, burst: 1.5}]",
        "rate_limits[0].burst: expected a whole number of at least 0, found the number `1.5`",
    ),
    (
        "rate_limits: [{rps: 1, prefix: v1}]",
        "rate_limits[0].prefix: expected a path that begins "
        "with /, found `v1`; did you mean `/v1`?",
    ),
    (
        "rate_limits: [{rps: 1, prefix: '/a b'}]",
        "rate_limits[0].prefix: expected a path that begins with /, found `/a b`",
    ),
    (
        "rate_limits: [{rps: 1}, {rps: 2, prefix: /}]",
        "rate_limits[1].prefix: `/` is limited by services[0].rate_limits[0] already",
    ),
    (
        "rate_limits: [{rps: 1, key: ip_address}]",
        "rate_limits[0].key: expected a table (`key: value` lines), found `ip_address`",
    ),
    (
        "rate_limits: [{rps: 1, key: {type: ip}}]",
        "rate_limits[0].key.type: expected ip_address or header, found `ip`",
    ),
    (
        "rate_limits: [{rps: 1, key: {type: header}}]",
        "rate_limits[0].key: `type: header` needs the key `header`",
    ),
    (
        "rate_limits: [{rps: 1, key: {type: ip_address, header: X}}]",
        "rate_limits[0].key.header: `header` means nothing with `type: ip_address`",
    ),
    (
        "rate_limits: [{rps: 1, key: {type: header, header: 'a b'}}]",
        "rate_limits[0].key.header: expected the name of a header, found `a b`",
    ),
]


REPLICAS = [
    ("replicas: unix:/a", "replicas: expected a list, found `unix:/a`; write [unix:/a]"),
    ("replicas: 2", "replicas: expected a list, found the number `2`"),
    (
        "replicas: [/run/a.sock]",
        "replicas[0]: expected unix:/path or http://host:port, "
        "found `/run/a.sock`; did you mean `unix:/run/a.sock`?",
    ),
    (
        "replicas: [10.0.0.7:80]",
        "replicas[0]: expected http://host:port, found `10.0.0.7:80`; "
        "did you mean `http://10.0.0.7:80`?",
    ),
    (
        "replicas: [5]",
        "replicas[0]: expected unix:/path or http://host:port or a table, found the number `5`",
    ),
    (f"replicas: ['unix:{LONG}']", "replicas[0]: socket path is 120 bytes long, at most 107 fit"),
    (
        f"replicas: [{{socket: {LONG}}}]",
        "replicas[0].socket: socket path is 120 bytes long, at most 107 fit",
    ),
    (
        "replicas: [unix:a.sock]",
        "replicas[0]: expected the absolute path of a Unix socket, found `unix:a.sock`",
    ),
    ("replicas: [{id: a}]", "replicas[0]: a replica has exactly one of `socket`, `url` and `ssh`"),
    (
        "replicas: [{socket: /a, url: 'http://h:1'}]",
        "replicas[0]: a replica has exactly one of `socket`, `url` and `ssh`",
    ),
    (
        "replicas: [{id: 1, socket: /a}]",
        'replicas[0].id: expected an id of letters, digits, `-._`, found the number `1`; write "1"',
    ),
    (
        "replicas: [{id: a/b, socket: /a}]",
        "replicas[0].id: expected an id of letters, digits, `-._`, found `a/b`",
    ),
    (
        "replicas: [{url: 'http://h'}]",
        "replicas[0].url: expected http://host:port, found `http://h`",
    ),
    (
        "replicas: [{url: 'https://h:1'}]",
        "replicas[0].url: replicas are spoken to in plain HTTP: "
        "expected http://host:port, found `https://h:1`",
    ),
    (
        "replicas: [{url: 'http://h:1/v1'}]",
        "replicas[0].url: expected http://host:port without a path, found `http://h:1/v1`",
    ),
    ("replicas: [unix:/a, unix:/a]", "replicas[1]: unix:/a is also services[0].replicas[0]"),
    (
        "replicas: [{id: x, socket: /a}, {id: x, socket: /b}]",
        "replicas[1]: the id `x` is also that of services[0].replicas[0]",
    ),
    (
        "replicas: [{id: x, socket: /a}, {id: y, socket: /a}]",
        "replicas[1]: unix:/a is also services[0].replicas[0]",
    ),
    (
        "replicas: [{ssh: {host: u@h, app_port: 80}}, {ssh: {host: u@h, port: 22, app_port: 80}}]",
        "replicas[1]: ssh u@h:22 to port 80 is also services[0].replicas[0]",
    ),
    (
        "replicas: [{ssh: {host: -oProxyCommand=x@h, app_port: 80}}]",
        "replicas[0].ssh.host: expected user@host, found `-oProxyCommand=x@h`",
    ),
    (
        "replicas: [{ssh: {host: u@h, app_port: 80, proxy: [{host: 'u@h;x'}]}}]",
        "replicas[0].ssh.proxy[0].host: expected user@host, found `u@h;x`",
    ),
    (
        "replicas: [{ssh: {host: h, app_port: 80}}]",
        "replicas[0].ssh.host: expected user@host, found `h`",
    ),
    ("replicas: [{ssh: {host: u@h}}]", "replicas[0].ssh.app_port: this key is required"),
    (
        "replicas: [{ssh: {host: u@h, app_port: 0}}]",
        "replicas[0].ssh.app_port: expected a whole "
        "number between 1 and 65535, found the number `0`",
    ),
]


@pytest.mark.parametrize(("text", "line"), SERVICES + RATE_LIMITS + REPLICAS)
def test_keys_of_a_service(problems: Problems, text: str, line: str) -> None:
    assert problems(f"{SERVICE}{text}\n") == [f"4: services[0].{line}"]
