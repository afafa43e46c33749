"""The mistakes that operators make, and what they read then: one table, key by key."""

from __future__ import annotations

import pytest
from gateway_text import Problems

TOP = [
    ("type: gatway", "type: expected gateway, found `gatway`; did you mean `gateway`?"),
    ("type: service", "type: expected gateway, found `service`"),
    ("sevices: []", "sevices: unknown key; did you mean `services`?"),
    ("Domain: a", "Domain: unknown key; did you mean `domain`?"),
    ("state-dir: a", "state-dir: unknown key; did you mean `state_dir`?"),
    ("version: 1", "version: unknown key"),
    ("replicas: []", "replicas: unknown key; did you mean `services[].replicas`?"),
    ("admin: a", "admin: unknown key; did you mean `listen.admin`?"),
    ("header_size: 1", "header_size: unknown key; did you mean `limits.header_size`?"),
    ("name: [a]", "name: expected a string, found a list"),
    (
        "project: My_Project",
        "project: expected a name of a-z, 0-9, - and _, found `My_Project`; "
        "did you mean `my_project`?",
    ),
    (
        "project: a/b",
        "project: expected a name of a-z, 0-9, - and _, found `a/b`",
    ),
    (
        "domain: https://example.com",
        "domain: expected a domain, not a URL, found `https://example.com`; "
        "did you mean `example.com`?",
    ),
    ("router: [sglang]", "router: expected the name of a router or a table, found a list"),
    ("router: true", "router: expected the name of a router or a table, found the boolean `true`"),
    ("router: {policy: x}", "router.type: this key is required"),
    (
        "router: {type: r, mode: stear}",
        "router.mode: expected auto, through or steer, found `stear`; did you mean `steer`?",
    ),
    ("router: {type: r, arg: {}}", "router.arg: unknown key; did you mean `args`?"),
    ("router: {type: r, args: [a]}", "router.args: expected a table, found a list"),
    (
        "router: {type: r, args: {--x: 1}}",
        "router.args.--x: a flag stands here without its dashes; did you mean `x`?",
    ),
    (
        "router: {type: r, args: {x: [1]}}",
        "router.args.x: expected a string, a number, true, false or null, found a list",
    ),
    (
        "workers: four",
        "workers: expected auto or a whole number between 1 and 256, found `four`",
    ),
    (
        "workers: 0",
        "workers: expected auto or a whole number between 1 and 256, found the number `0`",
    ),
    (
        "workers: 1.5",
        "workers: expected auto or a whole number between 1 and 256, found the number `1.5`",
    ),
    (
        "state_dir: ~/x",
        "state_dir: `~` is not replaced by a home directory, found `~/x`; write ${HOME}",
    ),
    ("state_dir: null", "state_dir: expected a path, found nothing"),
    (
        "drain_timeout: 1d",
        "drain_timeout: expected a duration such as 250ms, 5s, 10m or 1h, found `1d`; "
        "did you mean `24h`?",
    ),
    (
        "trusted_proxies: [10.0.0.0/33]",
        "trusted_proxies[0]: expected an address or a CIDR such as 10.0.0.0/8, found `10.0.0.0/33`",
    ),
    (
        "trusted_proxies: proxy.local",
        "trusted_proxies: expected an address or a CIDR such as 10.0.0.0/8, found `proxy.local`",
    ),
    ("services: {a: {}}", "services: expected a list, found a table"),
    ("services: a", "services: expected a list, found `a`; write [a]"),
    ("services: [a]", "services[0]: expected a table (`key: value` lines), found `a`"),
    ("certificate: {type: file, key: k}", "certificate.cert: this key is required"),
    (
        "certificate: {type: letsencrypt}",
        "certificate.type: expected file, letsencrypt-live, acme or lets-encrypt, found "
        "`letsencrypt`; did you mean `lets-encrypt`?",
    ),
    ("certificate: {cert: a}", "certificate.type: this key is required"),
    (
        "certificate: auto",
        "certificate: expected lets-encrypt or a table with the key `type`, found `auto`",
    ),
    ("certificate: {type: acme}", "certificate.server: this key is required"),
    (
        "certificate: {type: acme, server: letsencrypt}",
        "certificate.server: expected the URL of an ACME directory, found `letsencrypt`",
    ),
    (
        "certificate: {type: lets-encrypt, eab_kid: a}",
        "certificate: `eab_kid` and `eab_hmac_key` belong together",
    ),
]


LISTEN = [
    (
        "listen: 8080",
        "listen: expected a table (`key: value` lines), found the number `8080`",
    ),
    (
        "listen: {http: 8080}",
        "listen.http: expected host:port or unix:/path, or fd:NAME, found the number `8080`; "
        "did you mean `0.0.0.0:8080`?",
    ),
    (
        "listen: {http: ':8080'}",
        "listen.http: expected host:port or unix:/path, found `:8080`; "
        "did you mean `0.0.0.0:8080`?",
    ),
    ("listen: {http: []}", "listen.http: expected at least one address"),
    ("listen: {htp: a}", "listen.htp: unknown key; did you mean `http`?"),
    (
        "listen: {admin: /run/admin.sock}",
        "listen.admin: expected host:port or unix:/path, found `/run/admin.sock`; "
        "did you mean `unix:/run/admin.sock`?",
    ),
    (
        "listen: {admin: 'http://127.0.0.1:8000'}",
        "listen.admin: expected host:port or unix:/path, found `http://127.0.0.1:8000`; "
        "did you mean `127.0.0.1:8000`?",
    ),
    (
        "listen: {admin: 'h:99999'}",
        "listen.admin: expected a port between 0 and 65535, found `h:99999`",
    ),
    (
        "listen: {http: [a:1, b:2, a:1]}",
        "listen.http[2]: a:1 collides with a:1 of listen.http[0]",
    ),
    (
        "listen: {http: '0.0.0.0:8000'}",
        "listen.admin: 127.0.0.1:8000 collides with 0.0.0.0:8000 of listen.http",
    ),
    (
        "listen: {admin: 'unix:/run/a', metrics: 'unix:/run/a'}",
        "listen.metrics: unix:/run/a collides with unix:/run/a of listen.admin",
    ),
    ("listen: {http: [fd:a, fd:a]}", "listen.http: a systemd socket stands here twice"),
    (
        "ports: {bridge: 10001}",
        "ports.bridge: expected a range of ports such as 10001-11999, found the number `10001`",
    ),
    (
        "ports: {bridge: 11999-10001}",
        "ports.bridge: expected a range of ports such as 10001-11999, found `11999-10001`; "
        "did you mean `10001-11999`?",
    ),
    (
        "ports: {router: 60000-61000}",
        "ports.router: routers' metrics ports lie 10000 above: at most 55535 can be the last",
    ),
    (
        "ports: {bridge: 10001-20000}",
        "ports: the router ports and the bridge ports overlap",
    ),
    (
        "ports: {bridge: 30000-31000}",
        "ports: the router's metrics ports and the bridge ports overlap",
    ),
    ("log: info", "log: expected a table (`key: value` lines), found `info`"),
    (
        "log: {level: warn}",
        "log.level: expected debug, info, warning or error, found `warn`; did you mean `warning`?",
    ),
    ("log: {format: jsn}", "log.format: expected text or json, found `jsn`; did you mean `json`?"),
    (
        "log: {access: true}",
        "log.access: expected stdout, off or the path of a file, found the boolean `true`; "
        'write "true"',
    ),
    (
        "limits: {header_size: 32k}",
        "limits.header_size: expected a size such as 64KiB or 16MiB, found `32k`; "
        "did you mean `32KiB`?",
    ),
    (
        "limits: {header_timeout: 10 sec}",
        "limits.header_timeout: expected a duration such as 250ms, 5s, 10m or 1h, "
        "found `10 sec`; did you mean `10s`?",
    ),
    (
        "limits: {write_timeout: 0}",
        "limits.write_timeout: expected a duration such as 250ms, 5s, 10m or 1h, above 0, "
        "found the number `0`",
    ),
    (
        "limits: {connections_per_ip: -1}",
        "limits.connections_per_ip: expected a whole number of at least 0, found the number `-1`",
    ),
    (
        "limits: {headers: yes}",
        "limits.headers: expected a whole number of at least 1, found the boolean `yes`",
    ),
]


AUTH = [
    ("auth: tokens", "auth: expected a table with the key `type`, found `tokens`"),
    ("auth: {tokens: []}", "auth.type: this key is required"),
    (
        "auth: {type: token}",
        "auth.type: expected tokens, http, dstack or none, found `token`; did you mean `tokens`?",
    ),
    ("auth: {type: tokens}", "auth.tokens: this key is required"),
    ("auth: {type: tokens, tokens: []}", "auth.tokens: expected at least one token"),
    (
        "auth: {type: tokens, tokens: [geheim]}",
        "auth.tokens[0]: expected a table (`key: value` lines), found something else (not shown)",
    ),
    (
        "auth: {type: tokens, tokens: [{name: a}]}",
        "auth.tokens[0]: a token has exactly one of `token` and `sha256`",
    ),
    (
        "auth: {type: tokens, tokens: [{name: a, token: b, sha256: " + "a" * 64 + "}]}",
        "auth.tokens[0]: a token has exactly one of `token` and `sha256`",
    ),
    (
        "auth: {type: tokens, tokens: [{name: a, token: 12345}]}",
        "auth.tokens[0].token: expected a string, found a number (not shown); write it in quotes",
    ),
    (
        "auth: {type: tokens, tokens: [{name: a, token: 'two words'}]}",
        "auth.tokens[0].token: expected printable ASCII without spaces",
    ),
    (
        "auth: {type: tokens, tokens: [{name: a, token: ''}]}",
        "auth.tokens[0].token: expected a string, found an empty string",
    ),
    (
        "auth: {type: tokens, tokens: [{name: a, token: $TOKEN}]}",
        "auth.tokens[0].token: `$TOKEN` is not replaced by the variable's value; "
        "did you mean `${TOKEN}`?",
    ),
    (
        "auth: {type: tokens, tokens: [{name: a, sha256: geheim}]}",
        "auth.tokens[0].sha256: expected the 64 hexadecimal digits of a SHA-256, "
        "found something else (not shown)",
    ),
    (
        "auth: {type: tokens, tokens: [{name: a, token: x}, {name: a, token: y}]}",
        "auth.tokens[1].name: `a` is also auth.tokens[0]",
    ),
    (
        "auth: {type: tokens, tokens: [{name: a, token: x}, {name: b, token: x}]}",
        "auth.tokens[1]: this token is also that of auth.tokens[0]",
    ),
    (
        "auth: {type: tokens, tokens: [{name: a, token: x}], cache: 1s}",
        "auth.cache: unknown key; `cache` belongs to another `type`",
    ),
    ("auth: {type: http}", "auth.url: this key is required"),
    (
        "auth: {type: http, url: 'https://h/'}",
        "auth.url: expected http://host:port/path or unix:/socket:/path, found `https://h/`",
    ),
    (
        "auth: {type: http, url: 'http://user:geheim@h/'}",
        "auth.url: expected http://host:port/path or unix:/socket:/path without user and password",
    ),
    (
        "auth: {type: http, url: 'http://h/a', path: /b}",
        "auth.path: `url` has a path already",
    ),
]


@pytest.mark.parametrize(("text", "line"), TOP + LISTEN + AUTH)
def test_keys_of_the_top(problems: Problems, text: str, line: str) -> None:
    assert problems(f"{text}\n") == [f"1: {line}"]
