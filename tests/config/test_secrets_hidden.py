"""A secret of the file appears nowhere: not in messages, not in what is printed, not in a diff."""

from __future__ import annotations

from pathlib import Path

import pytest
from gateway_text import Load

from gatewayd.config.diff import diff
from gatewayd.config.errors import ConfigError
from gatewayd.config.render import render

HIDDEN = "geheim-0815"

BROKEN = [
    "auth: {type: tokens, tokens: [{name: a, token: 'SECRET SECRET'}]}",
    "auth: {type: tokens, tokens: [{name: a, token: [SECRET]}]}",
    'auth: {type: tokens, tokens: [{name: a, token: "SECRET\\x07"}]}',
    "auth: {type: tokens, tokens: [{name: a, sha256: SECRET}]}",
    "auth: {type: tokens, tokens: [{name: a, tokn: SECRET}]}",
    "auth: {type: tokens, tokens: [{name: a, token: SECRET}, {name: b, token: SECRET}]}",
    "auth: {type: tokens, tokens: [SECRET]}",
    "auth: {type: tokens, tokens: SECRET}",
    "auth: {type: tokens, tokens: {alice: SECRET}}",
    "auth: {type: http, url: 'http://u:SECRET@h/'}",
    "services: [{name: a, domain: a.b, replicas: [{url: 'http://u:SECRET@h:1'}]}]",
    "services: [{name: a, domain: a.b, replicas: ['http://u:SECRET@h:1']}]",
    "certificate: {type: acme, server: https://a, eab_hmac_key: SECRET}",
    "router: {type: r, args: {api-key: [SECRET]}}",
    "domain: ${WRONG}",
    "workers: ${WRONG}",
    "listen: {http: '${WRONG}', admin: '${WRONG}:80'}",
    "services: [{name: '${WRONG}', domain: 'https://${WRONG}'}]",
    "services: 'file:FILE'",
    "workers: file:FILE",
]


@pytest.mark.parametrize("text", BROKEN)
def test_messages(load: Load, tmp_path: Path, text: str) -> None:
    (tmp_path / "secret").write_text(f"{HIDDEN} {HIDDEN}\n")
    text = text.replace("SECRET", HIDDEN).replace("FILE", str(tmp_path / "secret"))
    with pytest.raises(ConfigError) as info:
        load(text + "\n", {"WRONG": f"{HIDDEN} {HIDDEN}"})
    assert info.value.problems
    assert HIDDEN not in str(info.value)
    assert HIDDEN not in repr(info.value)


def test_what_is_printed(load: Load) -> None:
    text = """
        auth: {type: tokens, tokens: [{name: alice, token: "TOKEN"}]}
        router: {type: r, args: {api-key: "TOKEN", worker-api-key: "TOKEN", policy-token: "TOKEN"}}
    """
    first = load(text.replace("TOKEN", HIDDEN))
    other = load(text.replace("TOKEN", HIDDEN + "-other"))
    changed = diff(first, other)
    assert changed.changes == (
        "router.args.api-key: changed",
        "router.args.worker-api-key: changed",
        "router.args.policy-token: changed",
        "auth.tokens.alice.sha256: changed",
    )
    whole = diff(load("name: x\n"), first)
    for shown in (render(first), str(changed), str(whole)):
        assert HIDDEN not in shown
        assert "***" in shown or shown == str(changed)
    assert first.auth is not None
    assert HIDDEN not in repr(first.auth)
