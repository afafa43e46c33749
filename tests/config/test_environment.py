"""What a string takes from outside, and what is said when it is not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from gateway_text import Load, Problems

from gatewayd.config.environment import Interpolated, interpolate
from gatewayd.config.errors import BadValueError

ENV = {"NAME": "value", "EMPTY": "", "DIR": "/run/secrets"}


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("${NAME}", "value"),
        ("a-${NAME}-b-${NAME}", "a-value-b-value"),
        ("${MISSING:-other}", "other"),
        ("${EMPTY:-other}", "other"),
        ("${NAME:-other}", "value"),
        ("${MISSING:-}", ""),
        ("${EMPTY}", ""),
        ("$${NAME}", "${NAME}"),
        ("costs $5", "costs $5"),
        ("plain", "plain"),
    ],
)
def test_references(text: str, result: str) -> None:
    assert interpolate(text, ENV) == result


def test_only_what_came_from_outside_is_marked_so() -> None:
    assert isinstance(interpolate("${NAME}", ENV), Interpolated)
    assert not isinstance(interpolate("plain", ENV), Interpolated)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("${MISSING}", "environment variable MISSING is not set"),
        ("${NAME", "`${` begins a reference: expected ${NAME} or ${NAME:-default}"),
        ("${NAME-x}", "`${` begins a reference: expected ${NAME} or ${NAME:-default}"),
        ("${1}", "`${` begins a reference: expected ${NAME} or ${NAME:-default}"),
        ("$NAME", "`$NAME` is not replaced by the variable's value; did you mean `${NAME}`?"),
        ("file:secrets/x", "expected file: and an absolute path"),
        ("file:/nowhere/x", "cannot read /nowhere/x: No such file or directory"),
        ("file:/", "cannot read /: Is a directory"),
        ("file:/dev/zero", "/dev/zero is longer than 65536 bytes"),
    ],
)
def test_what_cannot_be_replaced_is_named(text: str, message: str) -> None:
    with pytest.raises(BadValueError) as info:
        interpolate(text, ENV)
    assert str(info.value) == message


@pytest.mark.parametrize(
    ("content", "value"),
    [(b"s3cret\n", "s3cret"), (b"s3cret\r\n", "s3cret"), (b"s3cret", "s3cret"), (b"a\n\n", "a\n")],
)
def test_a_file_gives_its_content(tmp_path: Path, content: bytes, value: str) -> None:
    (tmp_path / "token").write_bytes(content)
    assert interpolate(f"file:{tmp_path}/token", {}) == value
    assert interpolate("file:${DIR}/token", {"DIR": str(tmp_path)}) == value


def test_a_file_must_be_text(tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(b"\xff\xfe")
    with pytest.raises(BadValueError, match="token is not UTF-8 text"):
        interpolate(f"file:{tmp_path}/token", {})


def test_a_variable_cannot_name_a_file() -> None:
    assert interpolate("${NAME}", {"NAME": "file:/etc/hostname"}) == "file:/etc/hostname"


def test_a_token_file_that_cannot_be_read(problems: Problems, tmp_path: Path) -> None:
    (tmp_path / "token").mkdir()
    text = f"""
        auth:
          type: tokens
          tokens:
            - {{name: alice, token: "file:{tmp_path}/token"}}
            - {{name: bob, token: "file:{tmp_path}/none"}}
    """
    assert problems(text) == [
        f"4: auth.tokens[0].token: cannot read {tmp_path}/token: Is a directory",
        f"5: auth.tokens[1].token: cannot read {tmp_path}/none: No such file or directory",
    ]


def test_permission_denied_is_said(problems: Problems, monkeypatch: pytest.MonkeyPatch) -> None:
    # as root nothing is unreadable: let open() say what it says to everybody else
    def deny(path: str, mode: str) -> object:
        if path.startswith("/run/"):
            raise PermissionError(13, os.strerror(13), path)
        return open(path, mode)

    monkeypatch.setattr("gatewayd.config.environment.open", deny, raising=False)
    assert problems("name: file:/run/secrets/x\n") == [
        "1: name: cannot read /run/secrets/x: Permission denied"
    ]


def test_numbers_and_booleans_may_come_from_outside(load: Load) -> None:
    config = load(
        """
        workers: ${WORKERS:-3}
        drain_timeout: ${DRAIN}
        listen: {http: "0.0.0.0:${PORT}"}
        limits: {headers: "${HEADERS}", header_size: "${SIZE}"}
        services:
          - name: llama
            domain: ${HOST}
            auth: ${AUTH}
            rate_limits: [{rps: "${RPS}", burst: "${BURST}"}]
        """,
        {
            "DRAIN": "1m",
            "PORT": "8081",
            "HEADERS": "50",
            "SIZE": "65536",
            "HOST": "h",
            "AUTH": "no",
            "RPS": "0.5",
            "BURST": "7",
        },
    )
    assert config.workers == 3
    assert config.drain_timeout == 60
    assert str(config.listen.http[0]) == "0.0.0.0:8081"
    assert (config.limits.headers, config.limits.header_size) == (50, 65536)
    (service,) = config.services
    assert not service.auth
    assert (service.rate_limits[0].rps, service.rate_limits[0].burst) == (0.5, 7)


def test_digits_from_outside_are_a_string_where_one_is_expected(load: Load) -> None:
    assert load("name: ${NAME}\n", {"NAME": "0123"}).name == "0123"


def test_numbers_in_quotes_are_not_numbers(problems: Problems) -> None:
    assert problems('limits: {headers: "50"}\n') == [
        "1: limits.headers: expected a whole number of at least 1, found `50`; "
        "write 50 without quotes"
    ]


def test_messages_show_the_reference_and_not_its_value(problems: Problems) -> None:
    text = """
        workers: ${WORKERS}
        domain: ${DOMAIN}
        limits: {header_size: "${SIZE}"}
    """
    assert problems(text, {"WORKERS": "many", "DOMAIN": "h:80", "SIZE": "64k"}) == [
        "1: workers: expected auto or a whole number between 1 and 256, found `${WORKERS}`",
        "2: domain: expected a domain without a port, found `${DOMAIN}`",
        "3: limits.header_size: expected a size such as 64KiB or 16MiB, found `${SIZE}`",
    ]
